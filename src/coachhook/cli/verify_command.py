"""`coachhook verify`: whether results are still what was written, from the same inputs, code and packages."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coachhook.cli.console import counted, print_json, progress
from coachhook.cli.shared import JsonOption, one_line_errors
from coachhook.errors import CoachHookError

if TYPE_CHECKING:
    from coachhook.verification import Finding, Verification


def verify(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="folder of results, at any depth, or a file of one")
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="fail on other code, other package versions and absent inputs too")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say which results no longer match how they were made.

    Every file of every result is held to the digest in the provenance.json
    beside it. Damaged or missing files, and inputs that are others now, fail
    (exit status 1). Other code, other versions of packages and absent inputs
    are told.

    Examples:
      coachhook verify results
      coachhook verify results/streams --strict
    """
    with one_line_errors():
        from coachhook.verification import find_provenance
        from coachhook.verification import verify as compare

        if not results.exists():
            raise CoachHookError(f"RESULTS: {results} does not exist; give a folder of results")
        found = find_provenance(results)
        if not found:
            raise CoachHookError(f"RESULTS: {results} holds no provenance.json; give a folder of results")
        with progress("verified", len(found)) as advance:
            verification = compare(found, advance)
        failed = verification.failed or (strict and verification.drifted)
        if as_json:
            print_json(asdict(verification) | {"failed": failed})
        else:
            _show(verification)
    if failed:
        sys.exit(1)


def _show(verification: Verification) -> None:
    for kind, findings in (
        ("damaged", verification.damaged),
        ("changed input", verification.changed_inputs),
        ("absent input", verification.missing_inputs),
        ("other code", verification.code),
        ("other version", verification.versions),
    ):
        for finding in findings:
            typer.echo(f"{kind}: {finding.what} {finding.problem}{_concerned(finding)}")
    counts = f"{verification.results:,} results, {verification.files:,} files"
    if verification.failed:
        typer.echo(f"{counts}: not all can be relied on; remove what is damaged, and run the study again")
    elif verification.drifted:
        typer.echo(f"{counts}: as they were written, but not all that they were made with is here")
    else:
        typer.echo(f"{counts}: as they were written, and all that they were made with is the same")


def _concerned(finding: Finding) -> str:
    """How many results a finding is about, where it is not a result's own file."""
    return f" ({counted(len(finding.results), 'result')})" if finding.results else ""
