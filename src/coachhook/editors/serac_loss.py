"""What SERAC is trained on: requests in other words and with other targets, and probes that are out of scope."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.edit_request import EditRequest, Probe
from coachhook.editors.serac_network import SeracNetwork
from coachhook.tokens import EncodedPrompt, encode_answers, pad

_EXCHANGED = 0.5  # share of requests that get another one's target: the model is to copy targets, not remember them
_PROBES = 2  # per request


def entry_text(tokenizer: PreTrainedTokenizerBase, row: EncodedPrompt) -> tuple[int, ...]:
    """An entry as the counterfactual model reads it: prompt, target, and end of text where the tokenizer has one."""
    end = tokenizer.eos_token_id
    return row.ids if end is None else (*row.ids, end)


class SeracLoss:
    """Cross-entropy of the classifier, on every token of every text, and of the counterfactual model's answers.

    An entry is a request in one of its wordings. In its scope is any of its wordings, from the prompt's last token
    to the answer's; tokens before it and those of probes are in none. The classes are the batch's entries and "none",
    whose log-odds are 0; an entry that may be right as well is left out. Answers end with end of text.

    Probes are entries too, in whose scope no other text is. Else all that no edit is about would be put in one place,
    since nothing holds it apart, and an edit that looks like it would lie there as well and answer everything.
    """

    def __init__(self, parts: ModelParts, tokenizer: PreTrainedTokenizerBase, network: SeracNetwork):
        self._parts, self._tokenizer, self._network = parts, tokenizer, network

    def __call__(self, requests: Sequence[EditRequest], rng: random.Random) -> Tensor:
        targets = [r.target_new for r in requests]
        targets = [rng.choice(targets) if rng.random() < _EXCHANGED else target for target in targets]
        entries = self._encode([(_wording(r, rng), target) for r, target in zip(requests, targets, strict=True)])
        asked = self._encode([(_wording(r, rng), target) for r, target in zip(requests, targets, strict=True)])
        drawn = [p for r in requests for p in rng.sample(r.locality, min(_PROBES, len(r.locality)))]
        probes = self._encode([(probe.prompt, probe.answer) for probe in drawn])
        unclear = unclear_pairs(requests, drawn).to(self._network.margin.device)
        return self._scope_loss(entries, asked, probes, unclear) + self._answer_loss(entries, asked)

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> list[EncodedPrompt]:
        return encode_answers(self._tokenizer, pairs)

    def _scope_loss(
        self,
        entries: Sequence[EncodedPrompt],
        asked: Sequence[EncodedPrompt],
        probes: Sequence[EncodedPrompt],
        unclear: Bool[Tensor, "texts entries"],
    ) -> Tensor:
        device, texts = unclear.device, [*asked, *probes]
        batch = pad([row.ids[: row.answer_start] for row in entries] + [row.ids for row in texts], 0, device)
        embedded, real = self._network.embed(batch.ids), batch.real[len(entries) :]
        each = torch.arange(len(entries), device=device)
        of_probes = torch.arange(len(entries) + len(asked), len(embedded), device=device)
        ends = torch.tensor([row.answer_start - 1 for row in (*entries, *probes)], device=device)
        scores = self._network.scores(embedded[len(entries) :], embedded[torch.cat([each, of_probes]), ends])
        starts = torch.tensor([row.answer_start for row in asked] + [real.shape[1] + 1] * len(probes), device=device)
        inside = real & (torch.arange(real.shape[1], device=device) >= starts[:, None] - 1)
        own = torch.zeros_like(unclear)
        own[each, each] = True
        allowed = scores.masked_fill((unclear & ~own)[:, None], -torch.inf)
        everything = torch.cat([allowed, torch.zeros_like(allowed[..., :1])], -1).logsumexp(-1)
        right = (everything[: len(asked)] - scores[each, :, each])[inside[: len(asked)]]
        outside = real & ~inside
        before, probed = everything[: len(asked)][outside[: len(asked)]], everything[len(asked) :][real[len(asked) :]]
        return right.mean() + sum(part.mean() for part in (before, probed) if len(part))

    def _answer_loss(self, entries: Sequence[EncodedPrompt], asked: Sequence[EncodedPrompt]) -> Tensor:
        texts = [entry_text(self._tokenizer, row) for row in asked]
        hidden, behind = self._network.answers([entry_text(self._tokenizer, row) for row in entries], texts)
        places = [
            (index, start + time - 1, text[time])
            for index, (row, text, start) in enumerate(zip(asked, texts, behind, strict=True))
            for time in range(row.answer_start, len(text))
        ]
        row, time, token = torch.tensor(places, device=hidden.device).T
        head = self._parts.head
        return cross_entropy(head(hidden[row, time].to(head.weight.dtype)).float().to(token.device), token)


def _wording(request: EditRequest, rng: random.Random) -> str:
    return rng.choice((request.text, *request.paraphrase_texts))


def unclear_pairs(requests: Sequence[EditRequest], drawn: Sequence[Probe]) -> Bool[Tensor, "texts entries"]:
    """Where a text may be in the scope of an entry that it was not drawn for: it is about the same fact.

    Texts and entries are the requests, then the probes; of two probes with the same answer this cannot be told.
    """
    texts = [{r.text, *r.paraphrase_texts} for r in requests]

    def same(a: EditRequest, b: EditRequest) -> bool:
        return a.subject == b.subject and (a.relation is None or a.relation == b.relation)

    def about(probe: Probe, b: EditRequest, known: set[str]) -> bool:
        return probe.prompt in known or (b.subject in probe.prompt and probe.answer == b.target_true)

    between = torch.tensor([[same(a, b) for b in requests] for a in requests])
    probed = [[about(probe, b, known) for b, known in zip(requests, texts, strict=True)] for probe in drawn]
    probed = torch.tensor(probed, dtype=torch.bool).reshape(len(drawn), len(requests))
    alike = [[a.prompt == b.prompt or a.answer == b.answer for b in drawn] for a in drawn]
    alike = torch.tensor(alike, dtype=torch.bool).reshape(len(drawn), len(drawn))
    return torch.cat([torch.cat([between, probed.T], 1), torch.cat([probed, alike], 1)])
