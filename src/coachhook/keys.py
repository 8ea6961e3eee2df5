"""Keys and hidden states of a batch, layer by layer, each block run only where something has changed.

Legend: k input of the rewrite module at the subject's last token; h hidden state there at the last edited layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.devices import at
from coachhook.edit_request import EditRequest, RequestError
from coachhook.hooks import HookLayers
from coachhook.tokens import EncodedPrompt, PaddedBatch, encode, pad, pad_id
from coachhook.tracing import block_inputs, rewrite_inputs


def encode_edit(
    tokenizer: PreTrainedTokenizerBase, request: EditRequest, prefix: str = "", answer: str | None = None
) -> EncodedPrompt:
    """The request's prompt behind a prefix, with the place of the subject's last token."""
    end = len(prefix) + request.subject_span(request.text)[1]
    return encode(tokenizer, prefix + request.text, answer, subject_end=end)


def check_lengths(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], prefixes: Sequence[str], longest: int
) -> None:
    """Refuse what does not fit a context of `longest` tokens.

    Raises:
        RequestError: no requests, or a prompt with a prefix and its target is too long.
    """
    if not requests:
        raise RequestError("there are no requests; give at least one")
    for position, request in enumerate(requests, 1):
        lengths = [len(encode_edit(tokenizer, request, prefix, request.target_new).ids) for prefix in ("", *prefixes)]
        if max(lengths) > longest:
            behind = f" ({max(lengths)} behind the longest prefix)" if max(lengths) > lengths[0] else ""
            problem = f"{lengths[0]} tokens with its target{behind}, the context holds {longest}; shorten it"
            raise RequestError(problem, "prompt", request.case_id, position)


@dataclass(frozen=True)
class KeyPrompts:
    """The prompts that make a batch's keys: first the u plain prompts, then each with each prefix, request by request.

    A key is the mean of its plain prompt's and the mean over its prefixed prompts', so the plain prompt weighs
    one half (MEMIT, released code). `bare`: a third part is "{subject} is a", as the last u rows, for those requests
    where it is True; of these each part weighs a third. A subject's key at the beginning of a text is unlike that
    behind other text, so one is needed where the prompt does not begin with it, and no second one where it does.
    """

    batch: PaddedBatch
    subject_last: Tensor
    requests: int
    prefixes: int
    bare: Bool[Tensor, " u"] | None = None

    @classmethod
    def encode(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        prefixes: Sequence[str],
        device: torch.device,
        bare: bool = False,
    ) -> KeyPrompts:
        rows = [encode_edit(tokenizer, request) for request in requests]
        rows += [encode_edit(tokenizer, request, prefix) for request in requests for prefix in prefixes]
        if bare:
            rows += [encode_edit(tokenizer, replace(request, prompt="{} is a")) for request in requests]
        batch = pad([row.ids for row in rows], pad_id(tokenizer), device)
        last = torch.tensor([row.subject_last for row in rows], device=device)
        behind = [request.subject_span(request.text)[0] > 0 for request in requests]
        return cls(batch, last, len(requests), len(prefixes), torch.tensor(behind) if bare else None)

    def plain(self, keys: Float[Tensor, "rows m"]) -> Float[Tensor, "u m"]:
        """The keys of the plain prompts alone."""
        return keys[: self.requests].float()

    def combine(self, keys: Float[Tensor, "rows m"]) -> Float[Tensor, "u m"]:
        """One key per request from one key per prompt."""
        parts = [self.plain(keys)]
        behind = self.requests * (1 + self.prefixes)
        if self.prefixes:
            prefixed = keys[self.requests : behind].float()
            parts.append(prefixed.unflatten(0, (self.requests, self.prefixes)).mean(1))
        total = reduce(add, parts)
        if self.bare is None:
            return total / len(parts)
        weights = self.bare[:, None].to(total)
        return (total + weights * keys[behind:].float()) / (len(parts) + weights)


class LayerSweep:
    """Goes up through the edited layers once, while they are being edited.

    The pass below the first edited layer is made once; going from one edited layer to the next runs only the
    blocks between them, with what is edited so far.

    Arguments:
        layers: edited layers, ascending.
    """

    def __init__(self, parts: ModelParts, hooks: HookLayers, prompts: KeyPrompts, layers: Sequence[int]):
        self._parts, self._hooks, self._prompts = parts, hooks, prompts
        self._at, self._last = layers[0], layers[-1]
        with block_inputs(parts, range(layers[0], self._last + 1)) as self._calls:
            parts.backbone(input_ids=prompts.batch.ids, attention_mask=prompts.batch.real.long(), use_cache=False)
        self._hidden = self._calls[self._at].hidden
        self._every = torch.arange(len(prompts.batch.ids), device=prompts.batch.ids.device)

    def keys(self, layer: int) -> Float[Tensor, "u m"]:
        """The batch's keys at `layer` (not below an earlier call's), float32."""
        return self._prompts.combine(self.prompt_keys(layer))

    def prompt_keys(self, layer: int) -> Float[Tensor, "rows m"]:
        """One key per prompt instead of one per request."""
        self._advance(layer)
        with rewrite_inputs(self._parts, [layer]) as recorded:
            self._run(layer, self._hidden, self._every)
        return at(recorded[layer], self._every, self._prompts.subject_last)

    def hidden(self, layer: int) -> Float[Tensor, "u d"]:
        """The hidden states of the plain prompts' subjects at the last edited layer, float32."""
        self._advance(layer)
        plain, last = self._plain()
        hidden = self._hidden[plain.to(self._hidden.device)]
        for block in range(layer, self._last + 1):
            hidden = self._run(block, hidden, plain)
        return at(hidden, plain, last).float()

    def given(self, norm: nn.Module, layer: int) -> Float[Tensor, "u d"]:
        """What a norm inside block `layer` is given at the plain prompts' subjects, float32."""
        self._advance(layer)
        plain, last = self._plain()
        seen: list[Tensor] = []
        handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self._run(layer, self._hidden[plain.to(self._hidden.device)], plain)
        finally:
            handle.remove()
        return at(seen[-1].view(len(plain), -1, seen[-1].shape[-1]), plain, last).float()

    def _plain(self) -> tuple[Tensor, Tensor]:
        """Rows of the plain prompts, and where their subjects end."""
        plain = self._every[: self._prompts.requests]
        return plain, self._prompts.subject_last[plain]

    def _advance(self, layer: int) -> None:
        for block in range(self._at, layer):
            self._hidden = self._run(block, self._hidden, self._every)
        self._at = layer

    def _run(self, block: int, hidden: Tensor, rows: Tensor) -> Tensor:
        self._hooks.see(self._prompts.batch.real[rows])
        return self._calls[block].run(self._parts.blocks[block], hidden, rows)
