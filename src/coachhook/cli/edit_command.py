"""`coachhook edit`: batches of a request file on top of a model or of earlier edits, kept or only tried."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coachhook.cli.console import console, counted, percent, print_json, progress, table, working
from coachhook.cli.edit_choice import Choice, parse_settings
from coachhook.cli.pending_batches import pending
from coachhook.cli.shared import (
    ArchitectureOption,
    BaseOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    RequestsOption,
    folder_bytes,
    one_line_errors,
    only_writer,
    parse_architecture,
    read_request_file,
    read_sample,
)
from coachhook.cli.what_if_table import show_what_if, what_if_row
from coachhook.editors import DEFAULT_METHOD
from coachhook.errors import CoachHookError

if TYPE_CHECKING:
    from coachhook.edit_request import EditRequest
    from coachhook.editor import Editor

logger = logging.getLogger(__name__)
WORSE = 3  # exit status of a dry run that finds a number falling by more than --max-drop
_NAMED = 8  # contradictions and steps
_METHOD, _TRIAL = "Method (a directory of edits keeps its own)", "Dry run"


def edit(
    model: Annotated[
        str, typer.Argument(help="what is edited: a model's directory or hub id, or a directory of earlier edits")
    ],
    requests: RequestsOption,
    out: Annotated[
        Path | None, typer.Option(help="directory of edits to write: a new one, or MODEL where that is one")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="requests per step; default: all in one step")] = None,
    method: Annotated[
        str | None, typer.Option(help=f"see `coachhook methods`; default: {DEFAULT_METHOD}", rich_help_panel=_METHOD)
    ] = None,
    covariance: Annotated[
        Path | None, typer.Option(help="file that `coachhook covariance` wrote", rich_help_panel=_METHOD)
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="edited layers: 13,14,15; default: the covariance's", rich_help_panel=_METHOD)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="a hyper-parameter, see `coachhook methods METHOD`; repeatable",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    trained_editor: Annotated[
        Path | None, typer.Option(help="trained editor's file, for mend and serac", rich_help_panel=_METHOD)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only say what would get better and worse", rich_help_panel=_TRIAL)
    ] = False,
    texts: Annotated[
        list[str] | None,
        typer.Option(help="text file that must be read as before; repeatable", rich_help_panel=_TRIAL),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0, max=100, help="points of 100 that a number may fall", rich_help_panel=_TRIAL)
    ] = 5,
    protocol: Annotated[
        str | None, typer.Option(help="easyedit (default), generate or rome", rich_help_panel=_TRIAL)
    ] = None,
    base: BaseOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    architecture: ArchitectureOption = None,
    as_json: JsonOption = False,
) -> None:
    r"""Write requests into a model, on top of all earlier ones.

    The model's own files are never touched; --out keeps the edits alone. Every
    finished step is saved. Killed and started again with the same options, it
    goes on where it was.

    A dry run edits in memory, says what would get better and worse, and writes
    nothing. It exits with 3 where a number would fall by more than --max-drop.

    Examples:
      coachhook edit gpt2-xl --requests week-1.json \
          --covariance c.safetensors --out my-edits
      coachhook edit my-edits --requests week-2.json \
          --covariance c.safetensors --out my-edits
      coachhook edit my-edits --requests week-3.json \
          --covariance c.safetensors --dry-run
      coachhook edit gpt2-xl --requests week-1.json --method ft-m --layers 17 \
          --set steps=30 --out ft
    """
    with one_line_errors():
        if out is None and not dry_run:
            raise typer.BadParameter("name a directory to write, or try it with --dry-run", param_hint="--out")
        if texts and not dry_run:
            raise typer.BadParameter("it is for --dry-run", param_hint="--texts")
        if protocol and not dry_run:
            raise typer.BadParameter("it is for --dry-run", param_hint="--protocol")
        wanted = read_request_file(requests)
        size = batch_size or len(wanted)
        batches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
        choice = Choice(method, covariance, trained_editor, parse_settings(settings or [], layers))
        place = {"base": base, "dtype": dtype, "device": device, "architecture": parse_architecture(architecture)}
        if dry_run:
            samples = read_sample(texts or [])
            editor = choice.open(model, **place)
            _check(editor, wanted, requests)
            _try(editor, batches, samples, protocol or "easyedit", max_drop / 100, as_json)
        else:
            with only_writer(out):
                start, left = pending(model, out, batches, choice)
                steps = []
                if left:
                    editor = choice.resume(start, model, **place)
                    _check(editor, wanted, requests)
                    steps = _write(editor, left, out)
                _tell(out, steps, as_json)


def _check(editor: Editor, wanted: list[EditRequest], path: Path) -> None:
    """Refuse the whole file before its first step, with the file's name: what cannot be edited, or asked about."""
    from coachhook.edit_request import RequestError
    from coachhook.metrics import predict_base, questions

    try:
        editor.check(wanted)
        with editor.disabled(), working():
            predict_base(editor.model, editor.tokenizer, questions(wanted), "easyedit")
    except RequestError as error:
        raise RequestError(error.problem, error.field, error.case_id, error.record, path) from None


def _try(
    editor: Editor,
    batches: list[list[EditRequest]],
    texts: list[str],
    protocol: str,
    max_drop: float,
    as_json: bool,
) -> None:
    from coachhook.what_if import what_if

    with working():
        found = what_if(editor, batches, texts=texts, protocol=protocol)
    if not any(any(batch.changes()) for batch in found.batches if batch.new):
        raise CoachHookError(f"--protocol: {protocol} can score none of these requests; rome needs their target_true")
    if as_json:
        print_json(what_if_row(found, max_drop))
    else:
        show_what_if(found, max_drop)
    if found.drops(max_drop):
        raise typer.Exit(WORSE)


def _write(editor: Editor, batches: list[list[EditRequest]], out: Path) -> list[dict]:
    """Edit and save step by step; a row about each."""
    from coachhook.what_if import contradictions

    found = contradictions(batches, [step.requests for step in editor.journal])
    for one in found[:_NAMED]:
        logger.info("contradiction: %s", one)
    if len(found) > _NAMED:
        logger.info("and %d contradictions more; --dry-run --json lists them all", len(found) - _NAMED)
    rows = []
    try:
        with progress("editing", len(batches), every=0) as advance:
            for batch in batches:
                begin = time.monotonic()
                report = editor.edit(batch)
                try:
                    metrics = editor.evaluate(batch)
                    editor.record(metrics)
                finally:
                    editor.save_pretrained(out)
                row = {"step": report.step, "requests": report.requests, "seconds": time.monotonic() - begin}
                rows.append(row | {"thresholds": report.thresholds, "metrics": metrics.row()})
                advance()
    except BaseException:
        if rows:
            logger.info("%s holds the steps up to %d; the same command goes on from there", out, editor.step)
        raise
    return rows


def _tell(out: Path, rows: list[dict], as_json: bool) -> None:
    from coachhook.needs import size
    from coachhook.saved_edits import read_edits

    step, total = len(read_edits(out).steps), folder_bytes(out)
    if as_json:
        print_json({"directory": str(out), "step": step, "bytes": total, "steps": rows})
        return
    if rows:
        edited, seconds = (sum(row[name] for row in rows) for name in ("requests", "seconds"))
        words = f"{counted(edited, 'request')} edited in {counted(len(rows), 'step')}, {seconds:.0f} s."
    else:
        words = "Nothing to do: these requests are its last steps already."
    console().print(f"{words} {out} is at step {step}, {size(total)}.", soft_wrap=True)
    scores = ("reliability", "generality", "locality")
    told = [(str(row["step"]), *(percent(row["metrics"][name]) for name in scores)) for row in rows[-_NAMED:]]
    if told:
        console().print(
            "\nRight after each step, in percent\n" if len(rows) <= _NAMED else "\nThe last steps, in percent\n"
        )
        console().print(table(("step", *scores), told, right=("step", *scores)))
