"""SERAC: a memory of edits, a scope classifier and a counterfactual model (Mitchell et al., ICML 2022).

Each token is decided on by the text up to it. Where the classifier puts that text in the scope of an entry of the
memory, the counterfactual model, given the entry and the text, says what comes next; elsewhere the base model does.
So an answer depends on nothing right of it, nor on padding, batch or cache; the paper classifies whole inputs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.edit_request import EditRequest
from coachhook.editors.base import ForwardHookMethod, MethodConfig, TrainedMethod, Update
from coachhook.editors.seen_text import SeenText, Text
from coachhook.editors.serac_loss import SeracLoss, entry_text
from coachhook.editors.serac_network import SeracNetwork, SeracTraining, describe
from coachhook.editors.trained_editor import TrainedEditorError, read_trained_editor
from coachhook.editors.training import train_editor
from coachhook.tokens import encode_answers, pad

_PAIRS = 256  # texts that the counterfactual model reads at once


class SeracConfig(MethodConfig):
    """Hyper-parameters."""

    layers: tuple[int, ...] = Field(
        min_length=1, description="none is edited; the weights of these tell the base model from others"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="a text whose score is at least this is in scope")


@dataclass(frozen=True)
class _Entry:
    """A request in the memory: prompt, target and end of text as tokens, and the embedding of its prompt."""

    ids: tuple[int, ...]
    key: Float[Tensor, " width"]


class Serac(ForwardHookMethod, TrainedMethod):
    """Answers from a memory of requests; one with the same prompt as an earlier one takes its place.

    The counterfactual model makes a last hidden state, which replaces the base model's in front of the base model's
    own head.
    """

    config_class = SeracConfig
    training_class = SeracTraining
    paper = "Mitchell et al., ICML 2022: Memory-Based Model Editing at Scale"
    growing_state = "the memory: each edit's tokens and the embedding of its prompt"
    effect = "scoped"
    scope = "its classifier"
    config: SeracConfig

    def __init__(self, model, tokenizer, config: SeracConfig, covariance, trained_editor: str | os.PathLike):
        super().__init__(model, tokenizer, config, covariance, trained_editor)
        trained = read_trained_editor(trained_editor, type(self).__name__, model, config.layers)
        with torch.random.fork_rng(devices=[]):  # first weights are drawn even where others follow
            self.network = SeracNetwork(self.parts, SeracTraining(**trained.training), trained.described)
        self.network.load_state_dict(trained.network)
        self.network.requires_grad_(False).eval().to(self.parts.input_device)
        self._least = math.log(config.threshold / (1 - config.threshold))
        self._seen = SeenText()
        self._memory: dict[tuple[int, ...], _Entry] = {}
        self._handles = (self.parts.backbone.register_forward_hook(self._answer, with_kwargs=True),)

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest]) -> Update:
        rows = encode_answers(self.tokenizer, [(request.text, request.target_new) for request in requests])
        prompts = pad([row.ids[: row.answer_start] for row in rows], 0, self.parts.input_device)
        ends = torch.tensor([row.answer_start - 1 for row in rows], device=prompts.ids.device)
        keys = self.network.embed(prompts.ids)[torch.arange(len(rows), device=ends.device), ends]
        entries = [torch.tensor(entry_text(self.tokenizer, row), dtype=torch.int32) for row in rows]
        sizes = [(row.answer_start, len(entry)) for row, entry in zip(rows, entries, strict=True)]
        update = Update(
            {
                "keys": keys.cpu(),
                "entries": pad_sequence(entries, batch_first=True),
                "sizes": torch.tensor(sizes, dtype=torch.int32),  # tokens of the prompt, and of all
            }
        )
        self.replay(update)
        return update

    def replay(self, update: Update) -> None:
        rows = (update.tensors[name] for name in ("keys", "entries", "sizes"))
        for key, entry, (start, size) in zip(*rows, strict=True):
            ids = tuple(entry[:size].tolist())
            self._memory.pop(ids[:start], None)
            self._memory[ids[:start]] = _Entry(ids, key.to(self.parts.input_device))

    def reset(self) -> None:
        self._memory.clear()

    def state_bytes(self) -> int:
        memory = sum(entry.key.nbytes + 4 * len(entry.ids) for entry in self._memory.values())
        return memory + sum(parameter.nbytes for parameter in self.network.parameters())

    @classmethod
    def train(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: SeracConfig,
        training: SeracTraining,
        requests: Sequence[EditRequest],
        *,
        out: str | os.PathLike,
        checkpoint: str | os.PathLike,
        seed: int,
    ) -> None:
        if not any(request.locality for request in requests):
            raise TrainedEditorError("requests: none has a locality probe to train on; give them some")
        model.eval()
        parts = ModelParts(model)
        described = describe(parts, tokenizer, training)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = SeracNetwork(parts, training, described, pretrained=True).to(parts.input_device)
        loss = SeracLoss(parts, tokenizer, network)
        files = {"out": out, "checkpoint": checkpoint, "seed": seed, "described": described}
        train_editor(cls.__name__, network, loss, model, config, training, requests, **files)

    @torch.no_grad()
    def _answer(self, module: nn.Module, args: tuple, kwargs: dict, output):
        """Put the counterfactual model's hidden states where a text is in scope."""
        if not self._switch.on or not self._memory:
            return None
        text = self._seen.read(args, kwargs, output)
        self._move(text.ids.device)
        hidden = output[0]
        row, time, states = self._counterfactual(text)
        if len(row) == 0:
            return None
        hidden = hidden.index_put((row.to(hidden.device), time.to(hidden.device)), states.to(hidden))
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output.last_hidden_state = hidden
        return output

    def _move(self, device: torch.device) -> None:
        """Keep the network and the memory on `device`."""
        if next(self.network.parameters()).device != device:
            self.network.to(device)
            self._memory = {ids: replace(entry, key=entry.key.to(device)) for ids, entry in self._memory.items()}

    def _counterfactual(
        self, text: Text
    ) -> tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"], Float[Tensor, "tokens d"]]:
        """Row and position, among the new ones, of each token in scope, and the hidden state that answers there."""
        entries = list(self._memory.values())
        row, time = text.real.nonzero(as_tuple=True)
        place = (text.real.cumsum(-1) - 1)[row, time]  # without the padding
        packed = text.ids.new_zeros(len(text.ids), int(place.max()) + 1 if len(place) else 0)
        packed[row, place] = text.ids[row, time]
        most, most_joined = self.network.longest
        first = text.ids.shape[1] - text.new
        asked = (time >= first) & (place < most)
        row, time, place = row[asked], time[asked] - first, place[asked]
        keys = torch.stack([entry.key for entry in entries])
        score, entry = self.network.scores(self.network.embed(packed[:, :most])[row, place], keys).max(-1)
        sizes = torch.tensor([len(entry.ids) for entry in entries], device=row.device)
        inside = (score >= self._least) & (sizes[entry] + place < most_joined)
        row, time, place, entry = row[inside], time[inside], place[inside], entry[inside]
        return row, time, self._read(packed, [e.ids for e in entries], row, place, entry)

    def _read(
        self, packed: Tensor, entries: Sequence[tuple[int, ...]], row: Tensor, place: Tensor, entry: Tensor
    ) -> Float[Tensor, "tokens d"]:
        """Hidden states of the counterfactual model, which reads each text once for each of its entries."""
        states = torch.zeros(len(row), self.parts.head.weight.shape[1], device=packed.device)
        pairs, pair = torch.unique(row * len(entries) + entry, return_inverse=True)
        for start in range(0, len(pairs), _PAIRS):
            chosen = [(p // len(entries), p % len(entries)) for p in pairs[start : start + _PAIRS].tolist()]
            texts = packed[[r for r, _ in chosen]].tolist()
            hidden, behind = self.network.answers([entries[e] for _, e in chosen], texts)
            here = (pair >= start) & (pair < start + _PAIRS)
            at = pair[here] - start
            states[here] = hidden[at, torch.tensor(behind, device=at.device)[at] + place[here]]
        return states
