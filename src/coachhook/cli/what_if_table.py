"""A what-if on paper: batches before and after, the prompts that lose most, contradictions, and a verdict."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.text import Text

from coachhook.cli.console import change, console, counted, table

if TYPE_CHECKING:
    from coachhook.what_if import BatchChange, Contradiction, Drop, WhatIf

_METRICS = {
    "reliability": "reliability",
    "generality": "generality",
    "locality": "locality",
    "locality_same_subject": "same subject",
    "portability": "portability",
}
_PROMPTS = 8  # of each kind of list
_STEPS = 12  # earlier steps that are shown


def what_if_row(found: WhatIf, max_drop: float) -> dict:
    """JSON of a what-if; scores are 0..1."""
    return {
        "step": found.step,
        "protocol": found.protocol,
        "batches": [
            {
                "step": batch.step,
                "new": batch.new,
                "requests": batch.requests,
                "superseded": batch.superseded,
                "before": batch.before.row(),
                "after": batch.after.row(),
            }
            for batch in found.batches
        ],
        "texts": [asdict(text) for text in found.texts],
        "worst": [asdict(prompt) for prompt in found.worst(_PROMPTS)],
        "contradictions": [_contradiction(one) for one in found.contradictions],
        "drops": [asdict(drop) for drop in found.drops(max_drop)],
    }


def show_what_if(found: WhatIf, max_drop: float) -> None:
    """The same for people; scores are in percent."""
    out = console()
    new = [batch for batch in found.batches if batch.new]
    requests = sum(batch.requests for batch in new)
    about = f"on top of step {found.step} (protocol {found.protocol}, in percent)"
    out.print(f"What {counted(requests, 'request')} would do {about}\n")
    out.print(_batch_table(found))
    if (agreement := found.text_agreement()) is not None:
        line = Text(f"\n{len(found.texts)} texts, tokens read as the base model reads them: ")
        out.print(line.append_text(change(*agreement)))
    if worst := found.worst(_PROMPTS):
        rows = [
            (str(p.step), p.kind.replace("_", " "), f"{p.prompt} → {p.answer}", change(p.before, p.after))
            for p in worst
        ]
        out.print("\nPrompts that lose most\n")
        out.print(table(("step", "kind", "prompt → wanted", "score"), rows, right=["step", "score"]))
    if found.contradictions:
        out.print("\nContradictions\n")
        for one in found.contradictions[:_PROMPTS]:
            out.print(f"  {one}")
        if (more := len(found.contradictions) - _PROMPTS) > 0:
            out.print(f"  and {more} more")
    out.print()
    out.print(_verdict(found.drops(max_drop), max_drop))


def _batch_table(found: WhatIf):
    changes = {batch.step: {name: pair for name, *pair in batch.changes()} for batch in found.batches}
    names = [name for name in _METRICS if any(name in of_batch for of_batch in changes.values())]
    shown, left_out = _chosen(found.batches)
    rows = [
        (
            f"{batch.step}{' new' if batch.new else ''}",
            str(batch.requests) + (f" ({batch.superseded} superseded)" if batch.superseded else ""),
            *(change(*changes[batch.step].get(name, (None, None))) for name in names),
        )
        for batch in shown
    ]
    if left_out:
        rows.append((f"and {left_out} steps that lose less", "", *("" for _ in names)))
    columns = ("step", "requests", *(_METRICS[name] for name in names))
    return table(columns, rows, right=columns[2:])


def _chosen(batches: tuple[BatchChange, ...]) -> tuple[list[BatchChange], int]:
    """All new batches and, of the earlier ones, those that lose most, in order; how many are left out."""
    earlier = [batch for batch in batches if not batch.new]
    loss = {batch.step: min((new - old for _, old, new in batch.changes()), default=0.0) for batch in earlier}
    worst = set(sorted(loss, key=loss.get)[:_STEPS])
    return [batch for batch in batches if batch.new or batch.step in worst], len(earlier) - len(worst)


def _verdict(drops: list[Drop], max_drop: float) -> Text:
    limit = f"more than {100 * max_drop:g} points"
    if not drops:
        return Text(f"No number falls by {limit}. Nothing was written; without --dry-run it will be.", style="green")
    told = [
        "texts" if drop.step is None else f"{_METRICS[drop.metric]} of step {drop.step}" for drop in drops[:_PROMPTS]
    ]
    more = f" and {len(drops) - _PROMPTS} more" if len(drops) > _PROMPTS else ""
    return Text(f"Worse by {limit}: {', '.join(told)}{more}. Nothing was written.", style="red")


def _contradiction(one: Contradiction) -> dict:
    return {
        "step": one.step,
        "prompt": one.request.text,
        "target_new": one.request.target_new,
        "earlier_step": one.earlier_step,
        "earlier_prompt": one.earlier.text,
        "earlier_target_new": one.earlier.target_new,
    }
