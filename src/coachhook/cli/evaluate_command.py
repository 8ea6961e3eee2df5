"""`coachhook evaluate`: how well the edits hold, beside the base model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coachhook.cli.console import console, counted, percent, print_json, table, working
from coachhook.cli.shared import (
    BaseOption,
    DeviceOption,
    EditsArgument,
    JsonOption,
    ProtocolOption,
    RequestsOption,
    StepOption,
    one_line_errors,
    open_edits,
    read_request_file,
)

if TYPE_CHECKING:
    from coachhook.metrics import Metrics

_MEANINGS = {
    "reliability": "edit prompts get the new answer",
    "generality": "so do paraphrases",
    "locality": "prompts about other subjects stay",
    "locality_same_subject": "so do other facts of the edited subjects",
    "portability": "what follows from the edits is known",
    "mean": "mean of reliability, generality, locality",
    "efficacy_magnitude": "P(new) − P(old) on edit prompts",
    "paraphrase_magnitude": "P(new) − P(old) on paraphrases",
    "neighbourhood_magnitude": "P(old) − P(new) on other subjects",
    "score": "harmonic mean of the three successes",
}


def evaluate(
    directory: EditsArgument,
    requests: RequestsOption,
    protocol: ProtocolOption = "easyedit",
    step: StepOption = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure how well requests hold.

    Reliability, generality and locality of the edited model, beside the base
    model's. Numbers of different protocols are not comparable.

    Example:
      coachhook evaluate my-edits --requests week-1.json --protocol generate
    """
    with one_line_errors():
        from coachhook.metrics import check_protocol

        check_protocol(protocol)
        wanted = read_request_file(requests)
        editor = open_edits(directory, base, device, step=step)
        with working():
            edited = editor.evaluate(wanted, protocol)
            with editor.disabled():
                before = editor.evaluate(wanted, protocol)
        if as_json:
            found = {"edited": edited.row(), "base": before.row()}
            about = {"directory": str(directory), "step": editor.step, "protocol": protocol, "requests": len(wanted)}
            print_json(about | found)
        else:
            about = f"{counted(len(wanted), 'request')} at step {editor.step} (protocol {protocol}, in percent)"
            console().print(f"{about}\n")
            _show(edited, before)


def _show(edited: Metrics, base: Metrics) -> None:
    before, after = base.row(), edited.row()
    rows = [
        (name.replace("_", " "), percent(before[name]), percent(after[name]), meaning)
        for name, meaning in _MEANINGS.items()
        if after.get(name) is not None
    ]
    console().print(table(("", "base", "edited", ""), rows, right=["base", "edited"]))
    if not_scored := after.get("not_scored"):
        console().print(f"\nNot scored, without a true answer: {counted(not_scored, 'request')}.")
