"""What a trained model recalls, and whether a value vector can make it say something else."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from coachhook.interchange import TokenizedFacts, changed_output
from coachhook.requests import EditRequest
from coachhook.tokens import batches_by_length, encode, pad, pad_id
from coachhook.world import Fact

_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class RecallReport:
    """Shares of prompts whose whole answer is the teacher-forced argmax."""

    overall: float
    prefixed: float
    """Overall, with 5 to 10 tokens of other text in front (a sample of at most 4,000 prompts)."""
    prompts: int
    templates: dict[str, float]
    """Per template; templates of one fact only are pooled under "(one fact)"."""

    def lowest(self) -> str:
        template = min(self.templates, key=self.templates.__getitem__)
        return f"{template!r} {100 * self.templates[template]:.1f} %"


def measure_recall(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, facts: Sequence[Fact], *, rng: random.Random
) -> RecallReport:
    """Recall of all facts in all templates, and of a sample of them behind random prefixes."""
    tokenized = TokenizedFacts.tokenize(tokenizer, facts)
    rows = [(prompt.leading.ids, tokenized.answers[prompt.fact]) for prompt in tokenized.prompts]
    correct = _recalled(model, rows, pad_id(tokenizer))
    text = [token for ids, answer in rng.sample(rows, min(len(rows), 2000)) for token in ids + answer]
    stop = tuple(tokenizer(".")["input_ids"])
    prefixed = []
    for prompt in rng.sample(tokenized.prompts, min(len(rows), 4000)):
        start, length = rng.randrange(max(1, len(text) - 10)), rng.randint(5, 10)
        prefix = (*text[start : start + length], *stop)
        prefixed.append((prefix + prompt.inner.ids, tokenized.answers[prompt.fact]))
    uses: dict[str, list[bool]] = defaultdict(list)
    for prompt, right in zip(tokenized.prompts, correct.tolist(), strict=True):
        uses[prompt.template].append(right)
    pooled: dict[str, list[bool]] = defaultdict(list)
    for template, rights in uses.items():
        pooled[template if len(rights) > 1 else "(one fact)"] += rights
    return RecallReport(
        overall=correct.float().mean().item(),
        prefixed=_recalled(model, prefixed, pad_id(tokenizer)).float().mean().item(),
        prompts=len(rows),
        templates={template: sum(rights) / len(rights) for template, rights in pooled.items()},
    )


def _recalled(
    model: GPT2LMHeadModel, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], padding: int
) -> Bool[Tensor, " rows"]:
    correct = torch.zeros(len(rows), dtype=torch.bool)
    for batch in batches_by_length([len(prompt) + len(answer) for prompt, answer in rows], _BATCH_TOKENS):
        padded = pad([rows[row][0] + rows[row][1] for row in batch], padding)
        with torch.no_grad():
            predicted = model(input_ids=padded.ids, attention_mask=padded.real.long(), use_cache=False).logits.argmax(
                -1
            )
        for index, row in enumerate(batch):
            prompt, answer = rows[row]
            said = predicted[index, len(prompt) - 1 : len(prompt) + len(answer) - 1]
            correct[row] = said.tolist() == list(answer)
    return correct


@dataclass(frozen=True)
class Reachability:
    """Target losses (mean over the target's tokens) before and after fitting a value vector, per request."""

    initial: list[float]
    final: list[float]
    threshold: float

    @property
    def share(self) -> float:
        """Share of requests whose loss ended under the threshold."""
        return sum(loss < self.threshold for loss in self.final) / len(self.final)


def reachability(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[EditRequest],
    *,
    layer: int,
    steps: int = 50,
    learning_rate: float = 0.3,
    clamp: float = 4.0,
    threshold: float = 0.5,
) -> Reachability:
    """Fit one δ per request, added to block `layer`'s output at the subject's last token, to its target.

    Plain Adam on the target's negative log-likelihood given the bare prompt, its rate in units of the hidden
    state's root mean square; after each step ‖δ‖ is cut to `clamp` · ‖h‖. No weight of the model is touched.
    """
    losses = _TargetLosses(model, tokenizer, requests, layer)
    with torch.no_grad():
        initial = losses(None)
    norms = losses.hidden.norm(dim=1, keepdim=True)
    scale = norms / losses.hidden.shape[1] ** 0.5
    delta = torch.zeros_like(losses.hidden, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=learning_rate)
    for _ in range(steps):
        (delta.grad,) = torch.autograd.grad(losses(delta * scale).sum(), delta)
        optimizer.step()
        with torch.no_grad():
            length = (delta * scale).norm(dim=1, keepdim=True)
            delta *= (clamp * norms / length.clamp(min=1e-12)).clamp(max=1.0)
    with torch.no_grad():
        final = losses(delta * scale)
    return Reachability(initial.tolist(), final.tolist(), threshold)


class _TargetLosses:
    """Every request's target loss with δ (requests × d) added; `hidden` is the unchanged state of the last call."""

    def __init__(
        self,
        model: GPT2LMHeadModel,
        tokenizer: PreTrainedTokenizerFast,
        requests: Sequence[EditRequest],
        layer: int,
    ):
        encoded = [encode(tokenizer, r.text, r.target_new, subject_end=r.subject_span(r.text)[1]) for r in requests]
        self._model, self._layer = model, layer
        self._padded = pad([prompt.ids for prompt in encoded], pad_id(tokenizer))
        self._places = torch.arange(len(encoded)), torch.tensor([prompt.subject_last for prompt in encoded])
        starts = torch.tensor([[prompt.answer_start] for prompt in encoded])
        is_answer = torch.arange(self._padded.ids.shape[1]) >= starts
        self._is_target = (is_answer & self._padded.real)[:, 1:]
        self.hidden = torch.empty(0)

    def __call__(self, delta: Tensor | None) -> Tensor:
        def change(hidden: Tensor) -> Tensor:
            self.hidden = hidden[self._places].detach()
            return hidden if delta is None else hidden.index_put(self._places, hidden[self._places] + delta)

        ids, real = self._padded.ids, self._padded.real.long()
        with changed_output(self._model, self._layer, change):
            logits = self._model(input_ids=ids, attention_mask=real, use_cache=False).logits[:, :-1]
        each = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return (each.view(self._is_target.shape) * self._is_target).sum(1) / self._is_target.sum(1)
