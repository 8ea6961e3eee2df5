"""GRACE: a codebook beside one rewrite module, whose values stand in for its outputs (Hartvigsen et al., NeurIPS 2023).

Legend: entry i has a key k_i (m), a value v_i (d), a deferral radius ε_i, and a label, the token ids of its target.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from coachhook.architectures import ArchitectureError
from coachhook.edit_request import EditRequest
from coachhook.editors.base import ForwardHookMethod, MethodConfig, Update
from coachhook.hooks import real_tokens
from coachhook.progress import tell
from coachhook.tokens import EncodedPrompt, encode
from coachhook.tracing import BlockInputs, RewriteHook, block_inputs, rewrite_inputs

Label = tuple[int, ...]

_GAP = 1e-5  # between the radii of a split (released code)
_ROUNDING = 1e-4  # share by which the distance of one and the same prompt may differ from batch to batch


class GraceConfig(MethodConfig):
    """Hyper-parameters; defaults are the published ones for GPT2-XL."""

    layers: tuple[int, ...] = Field((35,), min_length=1, max_length=1, description="the one layer with a codebook")
    radius: float = Field(1.0, gt=0, description="ε of a new entry: a Euclidean distance between keys")
    steps: int = Field(100, ge=1, description="Adam steps per value")
    learning_rate: float = Field(1.0, gt=0, description="Adam's learning rate for values")
    stop_loss: float = Field(0.0, ge=0, description="a value whose loss is below this is done; published: 0, never")
    replacement: Literal["prompt", "last"] = Field(
        "prompt", description="outputs that an entry replaces: those before the token that fires, or that token's"
    )


class Codebook:
    """The entries, in float32 on one device, and the rules of their radii."""

    def __init__(self, key_width: int, value_width: int, device: torch.device):
        self.keys: Float[Tensor, "n m"] = torch.zeros(0, key_width, device=device)
        self.values: Float[Tensor, "n d"] = torch.zeros(0, value_width, device=device)
        self.radii: Float[Tensor, " n"] = torch.zeros(0, device=device)
        self.labels: tuple[Label, ...] = ()

    def move(self, device: torch.device) -> None:
        """Keep all entries on `device`."""
        if self.keys.device != device:
            self.keys, self.values, self.radii = (part.to(device) for part in (self.keys, self.values, self.radii))

    def __len__(self) -> int:
        return len(self.labels)

    def nearest(self, queries: Float[Tensor, "queries m"]) -> tuple[Int[Tensor, " queries"], Float[Tensor, " queries"]]:
        """The nearest entry of each query, and its distance; in float64, where small distances survive rounding."""
        distances, entries = torch.cdist(queries.double(), self.keys.double()).min(-1)
        return entries, distances

    def fired(self, queries: Float[Tensor, "batch time m"]) -> Int[Tensor, "batch time"]:
        """The nearest entry of each query that lies within that entry's radius, -1 for the others."""
        entries, distances = self.nearest(queries.flatten(0, 1))
        return torch.where(distances <= self.radii[entries], entries, -1).view(queries.shape[:2])

    def place(self, key: Float[Tensor, " m"], label: Label, radius: float, value: Float[Tensor, " d"]) -> int:
        """Fit one edit in; the entry whose value is then to be trained on it.

        The paper's rules, with the released code's constants:
        - Further from the nearest entry than its radius + `radius`: a new entry.
        - Else, with the nearest entry's label: that entry grows to reach the key.
        - Else both get half the distance as radius. Where there is none to halve (one prompt, two targets) the entry
          passes to the later edit; the released code then leaves neither reachable.

        Arguments:
            value: what the value of a new entry starts from.
        """
        if not len(self):
            return self._append(key, value, radius, label)
        entry, distance = (found.item() for found in self.nearest(key[None]))
        if distance > self.radii[entry].item() + radius:
            return self._append(key, value, radius, label)
        if label == self.labels[entry]:
            reach = max(self.radii[entry].item(), distance * (1 + _ROUNDING))
            self.set(entry, self.keys[entry], self.values[entry], reach, label)
            return entry
        if distance <= 2 * _GAP:
            self.set(entry, self.keys[entry], value, self.radii[entry].item(), label)
            return entry
        self.set(entry, self.keys[entry], self.values[entry], distance / 2 - _GAP, self.labels[entry])
        return self._append(key, value, distance / 2, label)

    def set(self, entry: int, key: Tensor, value: Tensor, radius: float, label: Label) -> None:
        """Write one entry; `entry` may be the first free one."""
        rows = slice(entry, entry + 1)
        self.keys = _with_rows(self.keys, rows, key[None])
        self.values = _with_rows(self.values, rows, value[None])
        self.radii = _with_rows(self.radii, rows, self.radii.new_tensor([radius]))
        self.labels = (*self.labels[:entry], label, *self.labels[entry + 1 :])

    def changed_since(self, earlier: Codebook) -> Int[Tensor, " changed"]:
        """Entries that an earlier state of this codebook lacks or holds otherwise."""
        known = len(earlier)
        changed = torch.ones_like(self.radii, dtype=torch.bool)
        changed[:known] = (self.radii[:known] != earlier.radii) | (self.values[:known] != earlier.values).any(-1)
        return changed.nonzero()[:, 0]

    def _append(self, key: Tensor, value: Tensor, radius: float, label: Label) -> int:
        self.set(len(self), key, value, radius, label)
        return len(self) - 1


def _with_rows(tensor: Tensor, rows: slice, new: Tensor) -> Tensor:
    """A copy with these rows replaced, so that states and updates taken before stay as they are."""
    return torch.cat([tensor[: rows.start], new.to(tensor), tensor[rows.stop :]])


def entries_behind(fired: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """For every token the entry that fires next behind it in its row, -1 where none does."""
    none = fired.shape[1]
    time = torch.arange(none, device=fired.device)
    from_here = torch.where(fired >= 0, time, none).flip(-1).cummin(-1).values.flip(-1)
    behind = torch.nn.functional.pad(from_here[:, 1:], (0, 1), value=none)
    return torch.nn.functional.pad(fired, (0, 1), value=-1).gather(-1, behind)


class Grace(ForwardHookMethod):
    """GRACE at the rewrite module of one layer, answering in any ordinary forward pass.

    The authors edit GPT2-XL's `c_fc`, EasyEdit GPT-J's rewrite module; here it is the rewrite module in every family:
    key = its input at the last token of an edited prompt, value = what stands in for its output.

    **Where an entry fires.** The authors tell the layer where the prompt ends (`key_id`, taken from the labels). A
    model that is simply called cannot know, so every real token is a query, and an entry fires at each token that
    lies within its radius: at the end of an edited prompt, wherever it stands, with or without an answer behind it.

    **What it replaces.** `prompt`, as published: outputs before the token that fires, back to the previous one that
    did; the answer sees them through the attention of later blocks. It is not causal (an output depends on whether a
    later token fires). `last` (EasyEdit): the output of the token that fires, and nothing else; causal.

    **With a key-value cache** nothing is remembered between calls, nor need be: what a call replaced is in the cache.
    So `last` answers alike with and without one. `prompt` does too unless an entry fires on generated text: that
    replaces earlier outputs only where they are computed again.

    Each edit trains its value through the same forward pass that later answers.
    """

    config_class = GraceConfig
    paper = "Hartvigsen et al., NeurIPS 2023: Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors"
    growing_state = "one codebook entry (key, value, radius) per edit that does not grow an earlier entry"
    effect = "scoped"
    scope = "the radius of an entry"
    config: GraceConfig

    def __init__(self, model, tokenizer, config: GraceConfig, covariance=None):
        super().__init__(model, tokenizer, config, covariance)
        self._layer = config.layers[0]
        self.parts.rewrite_module(self._layer)  # refuses a layer that does not exist
        if config.replacement == "prompt" and self._layer == len(self.parts.blocks) - 1:
            raise ArchitectureError(
                f"layers: {self._layer} is the last, where no answer sees what stands before the prompt's last token; "
                "choose a lower one or replacement: last"
            )
        self._real: Tensor | None = None
        self.reset()
        self._handles = (
            self.parts.backbone.register_forward_pre_hook(self._see_mask, with_kwargs=True),
            RewriteHook(self.parts, self._layer, self._answer),
        )

    def edit(self, requests: Sequence[EditRequest]) -> Update:
        """Write the requests one after another."""
        earlier = copy.copy(self.codebook)
        for number, request in enumerate(requests):
            tell("finding values", number, len(requests))
            self._edit(encode(self.tokenizer, request.text, request.target_new))
        book = self.codebook
        changed = book.changed_since(earlier)
        tensors = {"keys": book.keys, "values": book.values, "radii": book.radii}
        tensors = {name: tensor[changed].cpu() for name, tensor in tensors.items()}
        return Update(tensors | {"entries": changed.cpu()}, {"labels": [book.labels[i] for i in changed.tolist()]})

    def replay(self, update: Update) -> None:
        columns = (update.tensors[name] for name in ("entries", "keys", "values", "radii"))
        for entry, key, value, radius, label in zip(*columns, update.info["labels"], strict=True):
            self.codebook.set(entry.item(), key, value, radius.item(), tuple(label))

    def reset(self) -> None:
        value_width, key_width = self.parts.shape(self._layer)
        self.codebook = Codebook(key_width, value_width, self.parts.device(self._layer))

    def state_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.codebook.keys, self.codebook.values, self.codebook.radii))

    def _edit(self, row: EncodedPrompt) -> None:
        ids = torch.tensor([row.ids], device=self.parts.input_device)
        blocks = range(self._layer, len(self.parts.blocks))
        with (
            torch.no_grad(),
            block_inputs(self.parts, blocks, stop=False) as calls,
            rewrite_inputs(self.parts, [self._layer], stop=False) as keys,
        ):
            self.parts.backbone(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        key = keys[self._layer][0, row.answer_start - 1].float()
        generator = torch.Generator().manual_seed(self.config.seed + len(self.codebook))
        start = torch.rand(self.codebook.values.shape[1], generator=generator)  # the paper's cold start
        entry = self.codebook.place(key, row.answer_ids, self.config.radius, start)
        self._train(entry, calls, row)

    def _train(self, entry: int, calls: dict[int, BlockInputs], row: EncodedPrompt) -> None:
        """Adam on the value's cross-entropy of the target, through the blocks from the codebook's on."""
        values = self.codebook.values
        place = (torch.tensor(entry, device=values.device),)
        answer = torch.tensor(row.answer_ids)
        value = values[entry].clone().requires_grad_()
        optimiser = torch.optim.Adam([value], lr=self.config.learning_rate)
        for _ in range(self.config.steps):
            self.codebook.values = values.index_put(place, value)
            hidden = calls[self._layer].hidden
            for block, call in calls.items():
                hidden = call.run(self.parts.blocks[block], hidden)
            before_answer = self.parts.final_norm(hidden)[0, row.answer_start - 1 : -1]
            logits = self.parts.head(before_answer).float()
            loss = torch.nn.functional.cross_entropy(logits, answer.to(logits.device))
            if loss < self.config.stop_loss:
                break
            (value.grad,) = torch.autograd.grad(loss, [value], allow_unused=True)
            if value.grad is None:  # nothing stands before the end of a prompt of one token
                break
            optimiser.step()
        self.codebook.values = values.index_put(place, value.detach())

    def _answer(self, keys: Float[Tensor, "batch time m"], output: Float[Tensor, "batch time d"]) -> Tensor | None:
        if not self._switch.on or not len(self.codebook):
            return None
        self.codebook.move(keys.device)
        fired = self.codebook.fired(keys)
        if self._real is not None:
            fired = torch.where(self._real.to(fired.device), fired, -1)
        entries = entries_behind(fired) if self.config.replacement == "prompt" else fired
        values = self.codebook.values[entries.clamp_min(0)].to(output.dtype)
        return torch.where(entries[..., None] >= 0, values, output)

    def _see_mask(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._real = real_tokens(args, kwargs)
