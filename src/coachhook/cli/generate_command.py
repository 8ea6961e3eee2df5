"""`coachhook generate` and `coachhook diff`: what the edited model writes, alone or beside its base model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from coachhook.cli.console import console, print_json, progress, table
from coachhook.cli.shared import (
    BaseOption,
    DeviceOption,
    EditsArgument,
    JsonOption,
    StepOption,
    one_line_errors,
    open_edits,
)

if TYPE_CHECKING:
    from coachhook.editor import Editor

TokensOption = Annotated[int, typer.Option(min=1, help="tokens to write at most")]


def generate(
    directory: EditsArgument,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="texts to go on from")],
    max_tokens: TokensOption = 30,
    step: StepOption = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    r"""Let the edited model go on from prompts.

    Greedily, and without a cache, so that every gate sees all of a text.

    Example:
      coachhook generate my-edits "Ada Lovelace was born in" \
          "The capital of France is"
    """
    with one_line_errors():
        editor = open_edits(directory, base, device, step=step)
        written = _continue(editor, prompts, max_tokens, "writing")
        if as_json:
            rows = [{"prompt": prompt, "continuation": text} for prompt, text in zip(prompts, written, strict=True)]
            print_json({"directory": str(directory), "step": editor.step, "prompts": rows})
            return
        for prompt, text in zip(prompts, written, strict=True):
            console().print(Text(prompt).append(text, style="bold"), soft_wrap=True)


def diff(
    directory: EditsArgument,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="texts to go on from")] = None,
    max_tokens: TokensOption = 12,
    step: StepOption = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    r"""Show base model and edited model side by side.

    What each writes behind a prompt, in one table; without prompts, behind
    those of the last step.

    Example:
      coachhook diff my-edits "Ada Lovelace was born in" \
          "Alan Turing was born in"
    """
    with one_line_errors():
        editor = open_edits(directory, base, device, step=step)
        prompts = prompts or ([request.text for request in editor.journal[-1].requests] if editor.step else [])
        with editor.disabled():
            before = _continue(editor, prompts, max_tokens, "base model")
        after = _continue(editor, prompts, max_tokens, "edited model")
        rows = list(zip(prompts, before, after, strict=True))
        if as_json:
            told = [{"prompt": prompt, "base": old, "edited": new, "same": old == new} for prompt, old, new in rows]
            print_json({"directory": str(directory), "step": editor.step, "prompts": told})
        else:
            _show(rows)


def _continue(editor: Editor, prompts: list[str], max_tokens: int, what: str) -> list[str]:
    from coachhook.continuations import continuations

    written = []
    with progress(what, len(prompts)) as advance:
        for text in continuations(editor.model, editor.tokenizer, prompts, max_tokens):
            written.append(text)
            advance()
    return written


def _show(rows: list[tuple[str, str, str]]) -> None:
    def line(text: str, style: str = "") -> Text:
        return Text(" ".join(text.split()), style=style)

    styled = [
        (line(prompt), line(old, "dim"), line("the same", "dim") if old == new else line(new, "bold"))
        for prompt, old, new in rows
    ]
    console().print(table(("prompt", "base model", "edited model"), styled))
    changed = sum(old != new for _, old, new in rows)
    console().print(f"\n{changed} of {len(rows)} prompts go on differently.")
