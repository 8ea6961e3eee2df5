"""WISE: side memories of one rewrite module, and a router that chooses between them and W0 (Wang et al., NeurIPS 2024).

Legend: W0 base weight (d×m); W' = W0 + ΔW a side memory, kept as ΔW in float32; activations: see `side_memory`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import Cache

from coachhook.architectures import ModelParts
from coachhook.contexts import generate_prefixes
from coachhook.devices import at
from coachhook.edit_request import EditRequest
from coachhook.editors.answers import AnswerBatch
from coachhook.editors.base import ForwardHookMethod, MethodConfig, Update
from coachhook.editors.side_memory import Margins, SideMemory, margin_loss, routed, ties_merge
from coachhook.hooks import real_tokens
from coachhook.progress import tell
from coachhook.tokens import pad, pad_id
from coachhook.tracing import RewriteHook, block_inputs, rewrite_inputs

_EARLIER_WEIGHT = 0.6  # of the merged memory when further shards are merged into it (released code)


class WiseConfig(MethodConfig):
    """Hyper-parameters; defaults are EasyEdit's for GPT2-XL, save for prefixes and unrelated texts."""

    layers: tuple[int, ...] = Field(min_length=1, max_length=1, description="the one layer with side memories")
    steps: int = Field(40, ge=1, description="SGD steps per batch")
    learning_rate: float = Field(1.0, gt=0, description="SGD's learning rate")
    norm_constraint: float = Field(1.0, gt=0, description="no element of ΔW is larger than this")
    margins: Margins = Field(
        (5.0, 20.0, 10.0),
        description="a, b, g: unrelated texts stay below a, edits above b, and g apart; units of the module's output",
    )
    routing_ratio: float = Field(
        0.8, gt=0, description="a side memory answers from this times the least activation of its edits on"
    )
    mask_ratio: float = Field(0.2, gt=0, le=1, description="share of ΔW's elements that a shard may change")
    save_every: int = Field(500, ge=1, description="edits per shard")
    merge_every: int = Field(1000, ge=1, description="edits between merges; a multiple of save_every")
    density: float = Field(0.53, gt=0, le=1, description="share of each ΔW's elements that a merge keeps, by size")
    retrieve: bool = Field(False, description="keep every merged memory (WISE-Retrieve) instead of one (WISE-Merge)")
    context_templates: int | tuple[str, ...] = Field(
        10, description="how many prefixes the model generates, or the prefixes themselves"
    )
    context_length: int = Field(10, ge=1, description="tokens per generated prefix")
    unrelated_texts: Annotated[int, Field(ge=1)] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        10, description="how many unrelated texts the model generates, or the texts themselves"
    )
    unrelated_length: int = Field(20, ge=1, description="tokens per generated unrelated text")

    @model_validator(mode="after")
    def _whole_shards(self) -> WiseConfig:
        if self.merge_every % self.save_every:
            raise ValueError(f"merge_every must be a multiple of save_every, {self.save_every}")
        return self


class _EditBatch:
    """Edits behind each prefix, from the edited block on; what lies below it is computed once."""

    def __init__(self, parts: ModelParts, layer: int, answers: AnswerBatch):
        self._parts, self._layer, self._answers = parts, layer, answers
        blocks, rows = range(layer, len(parts.blocks)), answers.rows
        with (
            torch.no_grad(),
            block_inputs(parts, blocks, stop=False) as self._calls,
            rewrite_inputs(parts, [layer], stop=False) as keys,
        ):
            parts.backbone(input_ids=rows.ids, attention_mask=rows.real.long(), use_cache=False)
        self._keys = keys[layer].float()
        time = torch.arange(rows.ids.shape[1], device=self._keys.device)
        self._prompt: Bool[Tensor, "batch time"] = time < time.new_tensor(answers.starts)[:, None]

    def likelihood_loss(self) -> Float[Tensor, ""]:
        """Negative log-likelihood of the targets, mean over tokens, then rows, as the hooks stand."""
        hidden = self._calls[self._layer].hidden
        for block, call in self._calls.items():
            hidden = call.run(self._parts.blocks[block], hidden)
        before = at(self._parts.final_norm(hidden), self._answers.row, self._answers.time)
        scores = self._parts.head(before).float().log_softmax(-1).to(self._answers.row.device)
        return self._answers.losses(scores).mean()

    def routed_change(
        self, delta: Float[Tensor, "d m"], ratio: float
    ) -> tuple[Float[Tensor, "batch time d"], Float[Tensor, " batch"]]:
        """What ΔW adds where its router would let it, were each row's prompt the least active edit; the activations."""
        change = self._keys @ delta.T
        sizes = change.norm(dim=-1)
        activations = (sizes * self._prompt).max(-1).values
        answering = sizes.cummax(-1).values >= ratio * activations[:, None]
        return change * answering[..., None], activations


class Wise(ForwardHookMethod):
    """WISE at the rewrite module of one layer, answering in any ordinary forward pass.

    **Editing.** A batch trains the current shard: ΔW by plain SGD on the targets' likelihood (behind each prefix too)
    and the margin loss, only where the shard's random mask allows. After `save_every` edits a new shard starts from W0;
    after `merge_every` the shards are merged by TIES, in WISE-Merge with the earlier merged memory as well. The
    margins' unrelated texts are generated by the base model (the paper takes unrelated data; a request's own probes are
    what it is evaluated on); those that name a subject of the batch are left out.

    **Routing.** The activation of a text is the largest of its tokens' (the released code averages texts of up to 100
    tokens and takes the largest of longer ones; an average so far opens too late to be of use). Each token goes to the
    side memory whose activation *so far in its row* is the largest, if it reaches that memory's threshold, and to W0
    otherwise: causal, and the same for any padding and batch. Editing goes by the same rule, each prompt by its own
    activation (the released code edits with W' at every token; here that would teach tokens that W0 later answers).
    Shards that are not merged yet answer on their own, so evaluating changes nothing.

    **With a key-value cache** the activation so far is remembered per row for as long as the cache lives. Beam search
    moves rows: beams of one prompt share what the prompt reached, not what each has generated since.
    """

    config_class = WiseConfig
    paper = "Wang et al., NeurIPS 2024: WISE: Rethinking the Knowledge Memory for Lifelong Model Editing of LLMs"
    growing_state = "nothing"  # with `retrieve`, one side memory per merge
    effect = "scoped"
    scope = "its router"
    config: WiseConfig

    def __init__(self, model, tokenizer, config: WiseConfig, covariance=None):
        super().__init__(model, tokenizer, config, covariance)
        self._layer = config.layers[0]
        self.parts.rewrite_module(self._layer)  # refuses a layer that does not exist
        self.prefixes = self._generate(config.context_templates, config.context_length, config.seed)
        self._unrelated = self._generate(config.unrelated_texts, config.unrelated_length, config.seed + 1)
        self._trained: Tensor | None = None
        self._real: Tensor | None = None
        self._earlier: Tensor | None = None
        self._so_far: Tensor | None = None
        self.reset()
        self._handles = (
            self.parts.backbone.register_forward_pre_hook(self._before_call, with_kwargs=True),
            self.parts.backbone.register_forward_hook(self._after_call),
            RewriteHook(self.parts, self._layer, self._answer),
        )

    def edit(self, requests: Sequence[EditRequest]) -> Update:
        tensors, pieces, first = {}, [], 0
        while first < len(requests):
            last = first + self.config.save_every - self._edits % self.config.save_every
            shard = requests[first:last]
            mask = self._mask()
            memory = self._train(shard, mask)
            tensors[f"shard.{len(pieces)}"] = memory.delta[mask].cpu()
            pieces.append({"edits": len(shard), "activation": memory.activation})
            self._advance(memory, len(shard))
            first = last
        return Update(tensors, {"pieces": pieces})

    def replay(self, update: Update) -> None:
        for index, piece in enumerate(update.info["pieces"]):
            values = update.tensors[f"shard.{index}"]
            mask = self._mask()
            delta = torch.zeros(mask.shape, device=mask.device)
            delta[mask] = values.to(delta.device)
            self._advance(SideMemory(delta, piece["activation"]), piece["edits"])

    def reset(self) -> None:
        self._edits = 0
        self._merged: list[SideMemory] = []
        self._shards: list[SideMemory] = []
        self._current: SideMemory | None = None
        self._carried: WeakKeyDictionary[Cache, Tensor] = WeakKeyDictionary()

    @property
    def memories(self) -> list[SideMemory]:
        """Those that answer: merged ones, whole shards, and the shard that is being filled."""
        return [*self._merged, *self._shards, *([self._current] if self._current else [])]

    def state_bytes(self) -> int:
        return sum(memory.delta.nbytes for memory in self.memories)

    def _train(self, requests: Sequence[EditRequest], mask: Bool[Tensor, "d m"]) -> SideMemory:
        config, device = self.config, self.parts.input_device
        pairs = [(prefix + r.text, r.target_new) for r in requests for prefix in ("", *self.prefixes)]
        edits = _EditBatch(self.parts, self._layer, AnswerBatch.encode(self.tokenizer, pairs, device))
        keys, real = self._unrelated_keys(requests)
        start = torch.zeros_like(mask, dtype=torch.float32) if self._current is None else self._current.delta
        delta = start.clone().requires_grad_()
        try:
            for step in range(config.steps):
                tell("training", step, config.steps)
                self._trained, inside = edits.routed_change(delta, config.routing_ratio)
                outside = ((keys @ delta.T).norm(dim=-1) * real).max(-1).values
                loss = edits.likelihood_loss().to(delta.device) + margin_loss(inside, outside, config.margins)
                (gradient,) = torch.autograd.grad(loss, [delta])
                with torch.no_grad():
                    delta -= config.learning_rate * mask * gradient
                    delta.clamp_(-config.norm_constraint, config.norm_constraint)
        finally:
            self._trained = None
        delta = delta.detach()
        least = edits.routed_change(delta, config.routing_ratio)[1].min().item()
        return SideMemory(delta, least if self._current is None else min(least, self._current.activation))

    def _advance(self, memory: SideMemory, edits: int) -> None:
        """The current shard is now `memory`; save and merge where it is time to."""
        self._current, self._edits = memory, self._edits + edits
        if self._edits % self.config.save_every == 0:
            self._shards.append(memory)
            self._current = None
        if self._edits % self.config.merge_every == 0:
            self._merge()

    def _merge(self) -> None:
        joined, weights = self._shards, [1 / len(self._shards)] * len(self._shards)
        if self._merged and not self.config.retrieve:
            joined = [*joined, self._merged.pop()]
            weights = [(1 - _EARLIER_WEIGHT) * weight for weight in weights] + [_EARLIER_WEIGHT]
        delta = ties_merge([memory.delta for memory in joined], weights, self.config.density)
        self._merged.append(SideMemory(delta, min(memory.activation for memory in joined)))
        self._shards = []

    def _mask(self) -> Bool[Tensor, "d m"]:
        """Which elements the current shard may change; drawn from the seed and the shard's number alone."""
        shard = self._edits // self.config.save_every
        seed = random.Random(f"{self.config.seed} shard {shard}").getrandbits(63)
        drawn = torch.rand(self.parts.shape(self._layer), generator=torch.Generator().manual_seed(seed))
        return (drawn < self.config.mask_ratio).to(self.parts.device(self._layer))

    def _generate(self, given: int | tuple[str, ...], length: int, seed: int) -> tuple[str, ...]:
        if isinstance(given, tuple):
            return given
        return generate_prefixes(self.model, self.tokenizer, given, length, seed)

    @torch.no_grad()
    def _unrelated_keys(
        self, requests: Sequence[EditRequest]
    ) -> tuple[Float[Tensor, "texts time m"], Bool[Tensor, "texts time"]]:
        ids = [self.tokenizer(text.strip())["input_ids"] for text in self._unrelated]
        batch = pad(ids, pad_id(self.tokenizer), self.parts.input_device)
        with rewrite_inputs(self.parts, [self._layer]) as keys:
            self.parts.backbone(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False)
        unrelated = [not any(request.subject in text for request in requests) for text in self._unrelated]
        found = keys[self._layer][unrelated].float()
        return found, batch.real[unrelated].to(found.device)

    def _answer(self, keys: Float[Tensor, "batch time m"], output: Float[Tensor, "batch time d"]) -> Tensor | None:
        if self._trained is not None:
            return (output + self._trained).to(output.dtype)
        keys, memories = keys.float(), self.memories
        if not self._switch.on or not memories:
            return None
        for memory in memories:
            memory.move(keys.device)
        changes = torch.stack([keys @ memory.delta.T for memory in memories])
        activations = changes.norm(dim=-1)
        if self._real is not None:
            activations = activations * self._real.to(activations.device)
        if self._earlier is not None and self._earlier.shape == activations.shape[:2]:
            activations = torch.cat([self._earlier[..., None], activations], -1)
        activations = activations.cummax(-1).values[..., -keys.shape[1] :]
        self._so_far = activations[..., -1]
        thresholds = activations.new_tensor([self.config.routing_ratio * memory.activation for memory in memories])
        chosen = routed(activations, thresholds)
        edited = (output + (chosen[..., None] * changes).sum(0)).to(output.dtype)
        return torch.where(chosen.any(0)[..., None], edited, output)

    def _before_call(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._real = real_tokens(args, kwargs)
        cache, self._so_far, self._earlier = kwargs.get("past_key_values"), None, None
        if cache is not None and cache.get_seq_length():
            self._earlier = self._carried.get(cache)

    def _after_call(self, module: nn.Module, args: tuple, output: object) -> None:
        cache = getattr(output, "past_key_values", None)
        if cache is not None and self._so_far is not None:
            self._carried[cache] = self._so_far
