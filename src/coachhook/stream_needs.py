"""What a stream takes, one function per need: memory by purpose, and multiply-adds turned into a rough time.

Legend: u requests of a batch, p of the whole stream, L edited layers with keys of width m and hidden states of width
d, c contexts of a request (the plain prompt and its prefixes), T tokens of a prompt behind a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # there is no public name for it
from transformers import AutoModelForCausalLM, PreTrainedConfig

from coachhook.architectures import ModelParts
from coachhook.covariance_memory import BLOCK_COPIES, MLP_COPIES
from coachhook.editors.base import MethodConfig
from coachhook.editors.locate import LocateConfig, LocateThenEdit
from coachhook.heap import in_heap
from coachhook.model_shape import shallow_config
from coachhook.speed import Speed
from coachhook.stream import StreamConfig

_PROBED_TOKENS = 64
_ANSWER_TOKENS = 4  # of a target, as in CounterFact and ZsRE
_LOGIT_COPIES = 4  # logits, their float32, log-probabilities, gradient
_QUESTIONS = 4  # prompts per request that an evaluation asks: one, its paraphrase, two of locality
_EVALUATED_TOKENS = 8192  # of an evaluation's batch


@dataclass(frozen=True)
class GateNeeds:
    """What the gates of all layers take, in bytes.

    Attributes:
        keeps_factors: whether they take ΔW in its factors, two vectors per edit and layer, which stays so then.
        held: once the first batch is written.
        background: of the sample of keys that they are calibrated by, where the hook layers are.
        journal: of what the first step keeps for them.
        making: while that is made.
        of_token: per token of a pass, while one layer decides.
    """

    keeps_factors: bool = False
    held: int = 0
    background: int = 0
    journal: int = 0
    making: int = 0
    of_token: int = 0


@dataclass(frozen=True)
class StreamShape:
    """A stream in numbers.

    Attributes:
        parts: of the model, on the meta device.
        method: the method's class.
        config: its hyper-parameters.
        stream: edits, batch size and evaluations.
        prompt_tokens: of a request's prompt with its target.
        background: keys of the covariance's sample, per layer.
        gate: what the method's gate takes besides.
    """

    parts: ModelParts
    method: type
    config: MethodConfig
    stream: StreamConfig
    prompt_tokens: int
    background: int
    gate: GateNeeds = GateNeeds()

    @property
    def locates(self) -> bool:
        """Whether the method solves for targets by least squares; the others train weights."""
        return issubclass(self.method, LocateThenEdit)

    @property
    def remembers_keys(self) -> bool:
        """Whether later solves need earlier keys, which a method may tell by its hyper-parameters."""
        bare = object.__new__(self.method)
        bare.config = self.config
        return getattr(bare, "remembers_keys", False)

    @property
    def edits_kept(self) -> int:
        """p: those that are in the model together."""
        return self.stream.edits if self.stream.round == "consecutive" else self.batch

    @property
    def batch(self) -> int:
        """u."""
        return min(self.stream.batch_size, self.stream.edits)

    @property
    def contexts(self) -> int:
        """c."""
        assert isinstance(self.config, LocateConfig)
        templates = self.config.context_templates
        return 1 + (templates if isinstance(templates, int) else len(templates))

    @property
    def prefixed_tokens(self) -> int:
        """T."""
        return min(self.prompt_tokens + self.config.context_length + 1, self.parts.context_length)

    @property
    def widths(self) -> list[int]:
        """m per edited layer."""
        return [self.parts.width(layer) for layer in self.config.layers]

    @property
    def hidden(self) -> int:
        """d."""
        return self.parts.shape(0)[0]

    @property
    def item(self) -> int:
        """Bytes of one of the model's numbers."""
        return self.parts.head.weight.itemsize

    @property
    def vocabulary(self) -> int:
        return self.parts.head.weight.shape[0]

    @property
    def blocks_above(self) -> int:
        """Blocks that a target's gradient goes through."""
        return len(self.parts.blocks) - 1 - self.config.layers[-1]


def changes_bytes(shape: StreamShape) -> int:
    """ΔW in float32: before a step, after it, and one layer on its way. Trained weights have Adam's moments besides.

    Where ΔW stays in its factors, these are (d×p) and (m×p).
    """
    each = [4 * shape.hidden * width for width in shape.widths]
    if shape.gate.keeps_factors:
        each = [4 * (shape.hidden + width) * shape.edits_kept for width in shape.widths]
    return 2 * sum(each) + max(each) if shape.locates else 5 * sum(each)


def covariance_bytes(shape: StreamShape) -> int:
    """C0 as it is read, float64, and the sample of keys, float32, in main memory."""
    if not shape.method.needs_covariance:
        return 0
    return sum(8 * width**2 + 4 * shape.background * width for width in shape.widths)


def solver_bytes(shape: StreamShape) -> int:
    """The factor of C0 per layer, float64, and a copy while one is made."""
    if not shape.method.needs_covariance:
        return 0
    return sum(8 * width**2 for width in shape.widths) + 8 * max(shape.widths) ** 2


def past_keys_bytes(shape: StreamShape) -> int:
    """P and A0⁻¹P (m×p) and the factor of I + PᵀA0⁻¹P (p×p) per layer, float64, where past keys are remembered.

    Where solves go on from factors, V (m×p) per layer, and one more while it grows.
    """
    edits, widths = shape.edits_kept, shape.widths
    if shape.gate.keeps_factors:
        return 8 * edits * (sum(widths) + max(widths))
    if not shape.remembers_keys:
        return 0
    return sum(8 * (2 * width * edits + edits**2) for width in widths)


def journal_bytes(shape: StreamShape) -> int:
    """What all steps wrote, in main memory and as a checkpoint: low-rank factors, or ΔW where weights are trained."""
    if not shape.locates:
        steps = -(-shape.stream.edits // shape.stream.batch_size)
        return steps * sum(4 * shape.hidden * width for width in shape.widths)
    keys = 2 if shape.remembers_keys else 1
    return shape.gate.journal + shape.stream.edits * sum(4 * (shape.hidden + keys * width) for width in shape.widths)


def target_bytes(shape: StreamShape, on_cpu: bool) -> int:
    """The target search: caches of attention, activations kept for the gradient, and logits of the answers.

    Behind a prefix every block above joins the prefix's keys and values to its own, and keeps that.
    """
    rows, numbers = shape.batch * (shape.contexts + 1), shape.hidden * shape.item
    cache = rows * shape.prefixed_tokens * 2 * numbers * len(shape.parts.blocks)
    joined = 2 * numbers * (shape.prefixed_tokens - shape.prompt_tokens)
    own = shape.prompt_tokens * saved_bytes_per_token(shape.parts)
    activations = cache + rows * shape.blocks_above * (own + joined)
    logits = 4 * shape.vocabulary * shape.batch * (shape.contexts * _ANSWER_TOKENS + 2)
    if not on_cpu:
        return activations + _LOGIT_COPIES * logits
    return in_heap(activations, rows * shape.prompt_tokens * numbers) + in_heap(_LOGIT_COPIES * logits, logits)


def training_bytes(shape: StreamShape) -> int:
    """A batch of prompts with their answers through all blocks, kept for the gradient, and the answers' logits."""
    tokens = shape.batch * shape.prompt_tokens
    kept = tokens * len(shape.parts.blocks) * saved_bytes_per_token(shape.parts)
    return kept + shape.batch * _ANSWER_TOKENS * shape.vocabulary * 4 * _LOGIT_COPIES


def evaluation_bytes(shape: StreamShape) -> int:
    """One batch of questions through one block, and the logits of their answers."""
    tokens = min(_EVALUATED_TOKENS, shape.stream.edits * _QUESTIONS * shape.prompt_tokens)
    block = tokens * shape.item * (MLP_COPIES * max(shape.widths) + BLOCK_COPIES * shape.hidden)
    block += tokens * shape.gate.of_token
    return block + tokens // shape.prompt_tokens * _ANSWER_TOKENS * shape.vocabulary * (shape.item + 4)


def saved_bytes_per_token(parts: ModelParts) -> int:
    """Bytes per token that one block keeps for the gradient, its mask included, counted on tensors without numbers."""
    hidden, dtype = parts.shape(0)[0], parts.head.weight.dtype  # read outside: the parts are no fake tensors
    with FakeTensorMode():
        one, two = (_saved_bytes(shallow_config(parts.model.config, blocks), hidden, dtype) for blocks in (1, 2))
    return (two - one) // _PROBED_TOKENS


def _saved_bytes(config: PreTrainedConfig, hidden: int, dtype: torch.dtype) -> int:
    shallow = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    weights = {parameter.untyped_storage()._cdata for parameter in shallow.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other storage takes its identity
        return tensor

    embedded = torch.zeros((1, _PROBED_TOKENS, hidden), dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        shallow.base_model(inputs_embeds=embedded, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


def evaluated_requests(shape: StreamShape) -> int:
    """How many requests all evaluations of the stream ask about, and the base model once."""
    stream, steps = shape.stream, shape.stream.evaluation_steps()
    alone = stream.round == "single"
    each = [shape.batch if alone else min(step * stream.batch_size, stream.edits) for step in steps]
    return sum(each) + stream.edits


def stream_tokens(shape: StreamShape) -> tuple[int, int]:
    """Tokens that go through the model while editing (once: the gradient steps repeat them) and in evaluations."""
    per_request = shape.contexts * shape.prefixed_tokens if shape.locates else shape.prompt_tokens
    return shape.stream.edits * per_request, evaluated_requests(shape) * _QUESTIONS * shape.prompt_tokens


def stream_seconds(shape: StreamShape, speed: Speed) -> float | None:
    """A rough time: targets (forward and backward above the last edited layer), keys, solves and evaluations.

    None for methods that train weights, whose number of steps no one rule tells.
    """
    if not shape.locates:
        return None
    edits, batch = shape.stream.edits, shape.batch
    steps = shape.config.target_steps + 1
    prompts, asked = stream_tokens(shape)
    below = prompts * len(shape.parts.blocks) * speed.block
    above = 2 * steps * edits * (shape.contexts + 1) * shape.prompt_tokens * shape.blocks_above * speed.block
    heads = 2 * steps * edits * (shape.contexts * _ANSWER_TOKENS + 1) * speed.head
    keys = 2 * prompts * (shape.config.layers[-1] + 1) * speed.block
    factors = sum(width**3 / 3 for width in shape.widths) * speed.product
    past = edits if past_keys_bytes(shape) else batch
    solves = edits * sum(4 * width**2 + 2 * width * past for width in shape.widths) * speed.product
    answers = asked / shape.prompt_tokens * _ANSWER_TOKENS * speed.head
    evaluations = asked * len(shape.parts.blocks) * speed.block + answers
    return below + above + heads + keys + factors + solves + evaluations
