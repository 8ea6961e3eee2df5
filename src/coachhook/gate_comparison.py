"""The same edits behind other gates: what a gate's score, threshold, layers and cheap form are worth.

A stream of a method with hook layers is edited; then ΔW stays as it is while its gates are changed (`gate_variants`),
and the model is asked again.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from coachhook.architectures import ModelParts
from coachhook.covariance_file import Covariance, read_covariance
from coachhook.edit_request import EditRequest
from coachhook.editor import Editor
from coachhook.gate_variants import RATES, gate_variants
from coachhook.keys import encode_edit
from coachhook.leverage import LeverageGate, background_quantile, prior_sketch
from coachhook.loading import load_base_model
from coachhook.metrics import PROTOCOLS, predict, predict_base, questions, score
from coachhook.solver import FactoredLeastSquares
from coachhook.stream import StreamConfig
from coachhook.stream_draw import draw_requests
from coachhook.texts import TextError
from coachhook.tokens import EncodedPrompt, batches_by_length, encode, pad, pad_id
from coachhook.tracing import rewrite_inputs

logger = logging.getLogger(__name__)

SKETCHES = (32, 64, 128, 256, 512, 768, 1536)
"""Rows; with as many as keys are wide, or more, a sketch is the exact form."""
FILLERS = (0, 2, 5, 10, 20, 40)
"""Tokens of ordinary text before a prompt, of another text before each."""
_SCORES = ("reliability", "generality", "locality", "locality_same_subject")
_RATES = ("rate", "rate_base", "rate_elsewhere")
_COLUMNS = ("kind", "gate", "value", *_SCORES, "subjects", "others", "recalled", *_RATES, "agreement")
_EVALUATED = 100  # requests; of more the scores change little
_UNSEEN = 500  # documents
_BATCH_TOKENS = 4096


def compare_gates(
    config: StreamConfig,
    requests: Sequence[EditRequest],
    model_dir: str | os.PathLike,
    covariance: str | os.PathLike,
    texts: Sequence[str],
    *,
    device: str = "auto",
) -> pd.DataFrame:
    """Edit a stream with a method that has a gate, and measure its gate and, where it is the leverage gate, others.

    Rows by `kind`: `tradeoff`, the scores with a gate (`gate`, `value`); `length`, behind so many tokens of other
    text (`value`) the share of `subjects` that all layers swap, of `others`, all other tokens, and of true answers that
    the base model `recalled` there; `unseen`, of ordinary text that the covariance never read, the share (`rate`) that
    the threshold for a chosen one (`value`) swaps, that of its keys in the base model (`rate_base`), and that of tokens
    which name no edited subject (`rate_elsewhere`); `sketch`, of tokens that a sketch of so many rows decides as the
    exact form does, the share (`agreement`).

    Arguments:
        config: the stream; its method has hook layers with a gate.
        requests: the pool that it is drawn from.
        texts: the documents that the covariance was computed on, in their order; those behind the last that it read
            count as unseen.

    Raises:
        CoachHookError: bad input; TextError where the covariance has read all of the texts.
    """
    stream = draw_requests(requests, config.edits, config.seed)
    model, tokenizer = load_base_model(model_dir, device)
    known = read_covariance(covariance, model)
    editor = Editor(model, tokenizer, config.method, known, seed=config.seed, **config.hyperparameters)
    editor.check(stream)
    subject = _Edited(editor, stream)
    for start in range(0, len(stream), config.batch_size):
        editor.edit(stream[start : start + config.batch_size])
        logger.info("%d of %d edited", min(start + config.batch_size, len(stream)), len(stream))
    unseen = _unseen(editor, texts, known.tokens)
    rows = []
    for row in _measurements(subject, known, unseen):
        logger.info("%s, %s, %s", row["kind"], row["gate"], row["value"])
        rows.append(row)
    editor.close()
    return pd.DataFrame(rows, columns=_COLUMNS)


def _measurements(subject: _Edited, known: Covariance, unseen: Sequence[str]) -> Iterator[dict]:
    gates = subject.gates()
    own = "leverage" if all(isinstance(gate, LeverageGate) for gate in gates.values()) else "paper"
    yield {"kind": "tradeoff", "gate": own, "value": 0, **subject.scores()}
    for count in FILLERS:
        yield {"kind": "length", "gate": own, "value": count, **subject.opened(unseen, count)}
    if own != "leverage":
        return
    edited, ordinary = subject.edited_keys(), known.background
    for gate, value, gate_of in gate_variants(gates, edited, ordinary):
        subject.set_gates(gate_of)
        yield {"kind": "tradeoff", "gate": gate, "value": value, **subject.scores()}
    text = _UnseenText(subject, unseen)
    for gate, value, gate_of in gate_variants(gates, edited, ordinary):
        if value in RATES and gate.endswith("background rate"):
            subject.set_gates(gate_of)
            yield {"kind": "unseen", "gate": gate.split(",")[0], "value": value, **text.rates()}
    subject.set_gates(lambda hook: gates[hook.layer])
    yield from _sketches(subject, known, edited)


def _sketches(subject: _Edited, known: Covariance, edited: Mapping[int, Tensor]) -> Iterator[dict]:
    """Of ordinary tokens and those of the prompts, the share that a sketch's gate decides as the exact form's."""
    gates, prompts, config = subject.gates(), subject.keys(subject.prompts()), subject.editor.config
    asked = {layer: torch.cat([known.background[layer], prompts[layer]]) for layer in gates}
    solvers = {layer: FactoredLeastSquares(known.matrices[layer], config.covariance_weight) for layer in gates}

    def decisions(layer: int, rows: int) -> Bool[Tensor, " n"]:
        gate, width = gates[layer], known.matrices[layer].shape[0]
        gate = gate.grown(gate.factors, prior_sketch(solvers[layer], width, min(rows, width), config.seed))
        tau = config.edited_fraction * gate.leverage(edited[layer]).min().item()
        if config.false_positive_rate is not None:
            ordinary = gate.leverage(known.background[layer])
            tau = max(tau, background_quantile(ordinary, config.false_positive_rate))
        return gate.leverage(asked[layer]) >= tau

    exact = {layer: decisions(layer, known.matrices[layer].shape[0]) for layer in gates}
    for rows in SKETCHES:
        same = [(decisions(layer, rows) == exact[layer]).float().mean().item() for layer in gates]
        yield {"kind": "sketch", "gate": "leverage", "value": rows, "agreement": sum(same) / len(same)}


def _unseen(editor: Editor, texts: Sequence[str], read: int) -> list[str]:
    """Some of the documents behind those that hold the first `read` tokens, from all over them."""
    left = read
    for position, text in enumerate(texts):
        if left <= 0:
            rest = texts[position:]
            return list(rest[:: max(1, len(rest) // _UNSEEN)])
        left -= len(editor.tokenizer(text)["input_ids"])
    raise TextError(f"texts: the covariance has read all of them ({read} tokens), and unseen ones are needed; add more")


class _UnseenText:
    """Text that no calibration has read, with the base model's keys of it computed once."""

    def __init__(self, subject: _Edited, texts: Sequence[str]):
        tokenizer, longest = subject.editor.tokenizer, ModelParts(subject.editor.model).context_length
        self._subject, self._rows, mentions = subject, [], []
        names = sorted({re.escape(request.subject) for request in subject.stream}, key=len, reverse=True)
        edited = re.compile(rf"(?<!\w)(?:{'|'.join(names)})(?!\w)")
        for text in texts:
            encoding = tokenizer(text, return_offsets_mapping=True)
            spans = [match.span() for match in edited.finditer(text)]
            offsets = encoding["offset_mapping"][:longest]
            self._rows.append(EncodedPrompt(tuple(encoding["input_ids"][:longest]), longest))
            mentions += [any(start < last and end > first for first, last in spans) for start, end in offsets]
        self._elsewhere = ~torch.tensor(mentions)
        with subject.editor.disabled():
            self._base = subject.keys(self._rows)

    def rates(self) -> dict[str, float]:
        """Shares of tokens that the gates swap, mean over layers."""
        edited = self._subject.swapped(self._subject.keys(self._rows))
        swaps = (edited, self._subject.swapped(self._base), edited[:, self._elsewhere])
        return {name: swap.float().mean().item() for name, swap in zip(_RATES, swaps, strict=True)}


class _Edited:
    """An edited model under study, with the base model's answers computed once."""

    def __init__(self, editor: Editor, stream: Sequence[EditRequest]):
        self.editor, self.stream = editor, stream
        self._parts, self.hooks = editor._method.parts, editor._method.hooks
        self._asked = questions(stream[:: max(1, len(stream) // _EVALUATED)])
        self._base = predict_base(editor.model, editor.tokenizer, self._asked, "easyedit")

    def gates(self) -> dict:
        return {hook.layer: hook.gate for hook in self.hooks}

    def set_gates(self, gate_of: Callable) -> None:
        for hook in self.hooks:
            hook.gate = gate_of(hook)

    @torch.no_grad()
    def swapped(self, keys: Mapping[int, Float[Tensor, "n m"]]) -> Bool[Tensor, "layers n"]:
        """Where each hook layer's gate lets W_h answer."""
        found = [hook.gate.swap(hook.change(keys[hook.layer]), None, keys[hook.layer]) for hook in self.hooks]
        return torch.stack([swap.cpu() for swap in found])

    def scores(self) -> dict[str, float]:
        answers = predict(self.editor.model, self.editor.tokenizer, self._asked, "easyedit")
        columns = score(self.editor.tokenizer, self._asked, answers, self._base, "easyedit")
        metrics = PROTOCOLS["easyedit"].summarise(self._asked, columns)
        return {name: getattr(metrics, name) for name in _SCORES}

    def prompts(self) -> list[EncodedPrompt]:
        """Edit prompts and paraphrases."""
        plain = [encode_edit(self.editor.tokenizer, request) for request in self.stream]
        others = [
            encode_edit(self.editor.tokenizer, replace(request, prompt=paraphrase))
            for request in self.stream
            for paraphrase in request.paraphrases
        ]
        return plain + others

    def edited_keys(self) -> dict[int, Float[Tensor, "u m"]]:
        """The keys of the edit prompts' subjects, per layer, as the gates meet them."""
        rows = [encode_edit(self.editor.tokenizer, request) for request in self.stream]
        return self.keys(rows, [row.subject_last for row in rows])

    @torch.no_grad()
    def keys(
        self, rows: Sequence[EncodedPrompt], places: Sequence[int] | None = None
    ) -> dict[int, Float[Tensor, "n m"]]:
        """Keys of all tokens, or of one place of each row, per layer, row by row; of the model as it stands."""
        layers = [hook.layer for hook in self.hooks]
        found = {layer: [None] * len(rows) for layer in layers}
        for group in batches_by_length([len(row.ids) for row in rows], _BATCH_TOKENS):
            batch = pad([rows[index].ids for index in group], pad_id(self.editor.tokenizer), self._parts.input_device)
            with rewrite_inputs(self._parts, layers) as keys:
                self._parts.backbone(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
            for layer in layers:
                for row, index in enumerate(group):
                    wanted = batch.real[row].to(keys[layer].device) if places is None else [places[index]]
                    found[layer][index] = keys[layer][row, wanted].float()
        return {layer: torch.cat(parts) for layer, parts in found.items()}

    @torch.no_grad()
    def opened(self, texts: Sequence[str], count: int) -> dict[str, float]:
        """Behind `count` tokens of text: the share of subjects' last tokens that all layers swap, of all tokens before,
        and of true answers that the base model gives there."""
        tokenizer, subjects, others, recalled = self.editor.tokenizer, [], [], []
        for index, request in enumerate(self.stream[:_EVALUATED]):
            behind = " ".join(texts[(index + more) % len(texts)] for more in range(count))
            words = tokenizer(behind)["input_ids"][:count] if behind else []
            before = f"{tokenizer.decode(words)} " if words else ""
            encoded = encode_edit(tokenizer, request, before)
            ids, place = torch.tensor([encoded.ids], device=self._parts.input_device), encoded.subject_last
            with rewrite_inputs(self._parts, [hook.layer for hook in self.hooks], stop=False) as keys:
                self.editor.model(ids, use_cache=False)
            swaps = [hook.gate.swap(hook.change(keys[hook.layer]), None, keys[hook.layer])[0] for hook in self.hooks]
            subjects.append(torch.stack([swap[place] for swap in swaps]).all().item())
            others += [swap[:place].float().mean().item() for swap in swaps if place]
            if request.target_true is not None:
                recalled.append(self._recalls(encode(tokenizer, before + request.text, request.target_true)))
        named = {"subjects": subjects, "others": others, "recalled": recalled}
        return {name: sum(shares) / max(1, len(shares)) for name, shares in named.items()}

    def _recalls(self, asked: EncodedPrompt) -> bool:
        """Whether every token of the answer is the base model's first choice."""
        with self.editor.disabled():
            logits = self.editor.model(
                torch.tensor([asked.ids], device=self._parts.input_device), use_cache=False
            ).logits
        return logits[0, asked.answer_start - 1 : -1].argmax(-1).tolist() == list(asked.ids[asked.answer_start :])
