"""How an answer is read off a model, per protocol.

- "easyedit" (the paper's): teacher forcing; the argmax before each token of the answer, which stands in the sequence.
- "generate": greedy generation without a cache of as many tokens as the answer has; a gate sees the prompt and what
  has been generated, nothing else.

Edits and paraphrases are scored against the answer, locality probes against the base model's own output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.edit_request import RequestError
from coachhook.metrics.questions import LOCALITY, Question
from coachhook.tokens import EncodedPrompt, batches_by_length, encode_answers, pad, pad_id

Answers = list[tuple[int, ...]]  # predicted token ids, question by question

_BATCH_TOKENS = 8192


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    protocol: str,
) -> Answers:
    """The model's answers under `protocol`: one predicted token for each token of the question's answer.

    Raises:
        RequestError: a prompt with its answer is longer than the context.
    """
    parts = ModelParts(model)
    rows = _encode(parts, tokenizer, asked)
    return PROTOCOLS[protocol][0](parts, rows, pad_id(tokenizer)) if rows else []


@torch.no_grad()
def predict_base(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    protocol: str,
) -> Answers:
    """`predict` where scores are held against the base model's answer: on locality probes; () for other questions.

    Raises:
        RequestError: a prompt, of whatever kind, is longer with its answer than the context.
    """
    parts = ModelParts(model)
    rows = _encode(parts, tokenizer, asked)
    probes = [place for place, question in enumerate(asked) if question.kind in LOCALITY]
    found = PROTOCOLS[protocol][0](parts, [rows[place] for place in probes], pad_id(tokenizer)) if probes else []
    answers: Answers = [()] * len(rows)
    for place, answer in zip(probes, found, strict=True):
        answers[place] = answer
    return answers


def score(
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    answers: Answers,
    base: Answers,
    protocol: str,
) -> list[float]:
    """Score in 0..1 per question: agreement with the answer, for locality probes with the base model's output.

    Arguments:
        base: what `predict_base` found for the same questions, under the same protocol.
    """
    compare = PROTOCOLS[protocol][1]
    rows = encode_answers(tokenizer, [(question.prompt, question.answer) for question in asked])
    return [
        compare(given, before if question.kind in LOCALITY else row.answer_ids)
        for question, row, given, before in zip(asked, rows, answers, base, strict=True)
    ]


def _encode(parts: ModelParts, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question]) -> list[EncodedPrompt]:
    rows = encode_answers(tokenizer, [(question.prompt, question.answer) for question in asked])
    for question, row in zip(asked, rows, strict=True):
        if len(row.ids) > parts.context_length:
            problem = f"{len(row.ids)} tokens with its answer, the model's context holds {parts.context_length}"
            raise RequestError(f"{problem}; shorten it", f"{question.kind} prompt", record=question.request + 1)
    return rows


def _teacher_forced(parts: ModelParts, rows: Sequence[EncodedPrompt], fill: int) -> Answers:
    answers: Answers = [()] * len(rows)
    for group in batches_by_length([len(row.ids) for row in rows], _BATCH_TOKENS):
        places = [
            (place, time - 1)
            for place, index in enumerate(group)
            for time in range(rows[index].answer_start, len(rows[index].ids))
        ]
        tokens = _argmax(parts, [rows[index].ids for index in group], places, fill)
        for index in group:
            size = len(rows[index].answer_ids)
            answers[index], tokens = tuple(tokens[:size]), tokens[size:]
    return answers


def _generated(parts: ModelParts, rows: Sequence[EncodedPrompt], fill: int) -> Answers:
    answers: Answers = [()] * len(rows)
    for length in range(max(len(row.answer_ids) for row in rows)):
        going = [index for index, row in enumerate(rows) if len(row.answer_ids) > length]
        texts = [rows[index].ids[: rows[index].answer_start] + answers[index] for index in going]
        for group in batches_by_length([len(ids) for ids in texts], _BATCH_TOKENS):
            chosen = [texts[place] for place in group]
            tokens = _argmax(parts, chosen, [(row, len(ids) - 1) for row, ids in enumerate(chosen)], fill)
            for place, token in zip(group, tokens, strict=True):
                answers[going[place]] += (token,)
    return answers


def _argmax(parts: ModelParts, ids: Sequence[Sequence[int]], places: Sequence[tuple[int, int]], fill: int) -> list[int]:
    """The most probable next token at each (row, position); the head runs only there."""
    batch = pad(ids, fill, parts.input_device)
    hidden = parts.backbone(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False).last_hidden_state
    row, time = torch.tensor(places, device=hidden.device).T
    return parts.head(hidden[row, time]).argmax(-1).tolist()


def _token_accuracy(given: tuple[int, ...], wanted: tuple[int, ...]) -> float:
    return sum(a == b for a, b in zip(given, wanted, strict=True)) / len(wanted)


def _exact_match(given: tuple[int, ...], wanted: tuple[int, ...]) -> float:
    return float(given == wanted)


PROTOCOLS: dict[str, tuple[Callable[..., Answers], Callable[[tuple, tuple], float]]] = {
    "easyedit": (_teacher_forced, _token_accuracy),
    "generate": (_generated, _exact_match),
}
