"""Questions put to a model, and their answers scored, under a protocol given by name.

- "easyedit" (the paper's): teacher forcing; the share of the answer's tokens that are the most probable at their place.
- "generate": greedy generation without a cache of as many tokens as the answer has, exact match; a gate sees the prompt
  and what has been generated, nothing else.
- "rome": which of the new and the true answer is the more probable (`RomeMetrics`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.edit_request import RequestError
from coachhook.edited_model import evaluating
from coachhook.metrics.protocols import EASYEDIT, GENERATE, Answers, Columns, Protocol
from coachhook.metrics.questions import KINDS, Question
from coachhook.metrics.rome import Rome
from coachhook.tokens import EncodedPrompt, encode_answers, pad_id

PROTOCOLS: dict[str, Protocol] = {"easyedit": EASYEDIT, "generate": GENERATE, "rome": Rome()}


def check_protocol(name: str) -> None:
    """Raises RequestError where there is no such protocol."""
    if name not in PROTOCOLS:
        raise RequestError(f"protocol {name!r} is unknown; use one of {', '.join(PROTOCOLS)}")


def predict(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question], protocol: str
) -> Answers:
    """What the model answers to each question, as the protocol reads it: token ids, or log-likelihoods in nats.

    Raises:
        RequestError: a prompt with an answer is longer than the context.
    """
    return _ask(model, tokenizer, asked, PROTOCOLS[protocol], KINDS)


def predict_base(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question], protocol: str
) -> Answers:
    """`predict` where scores are held against the base model's answer; () for other questions.

    Raises:
        RequestError: a prompt, of whatever kind, is longer with its answer than the context.
    """
    return _ask(model, tokenizer, asked, PROTOCOLS[protocol], PROTOCOLS[protocol].base_kinds)


def score(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question], answers: Answers, base: Answers, protocol: str
) -> Columns:
    """The protocol's numbers of each question, by name: "score" (0..1, None where it cannot be scored) and others.

    Arguments:
        base: what `predict_base` found for the same questions, under the same protocol.
    """
    return PROTOCOLS[protocol].score(tokenizer, asked, answers, base)


@torch.no_grad()
def _ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    protocol: Protocol,
    kinds: Collection[str],
) -> Answers:
    """All questions are checked, those of these kinds are asked."""
    parts = ModelParts(model)
    owners = [question for question in asked for _ in protocol.candidates(question)]
    rows = _encode(parts, tokenizer, owners, [text for question in asked for text in protocol.candidates(question)])
    chosen = [row for question, row in zip(owners, rows, strict=True) if question.kind in kinds]
    with evaluating(model):
        found = iter(list(protocol.read(parts, chosen, pad_id(tokenizer))))
    return [
        sum((next(found) for _ in protocol.candidates(question)), ()) if question.kind in kinds else ()
        for question in asked
    ]


def _encode(
    parts: ModelParts, tokenizer: PreTrainedTokenizerBase, owners: Sequence[Question], answers: Sequence[str]
) -> list[EncodedPrompt]:
    """Each answer behind the prompt of the question that owns it."""
    rows = encode_answers(tokenizer, [(owner.prompt, text) for owner, text in zip(owners, answers, strict=True)])
    for question, row in zip(owners, rows, strict=True):
        if len(row.ids) > parts.context_length:
            problem = f"{len(row.ids)} tokens with its answer, the model's context holds {parts.context_length}"
            raise RequestError(f"{problem}; shorten it", f"{question.kind} prompt", record=question.request + 1)
    return rows
