"""How much memory the covariance pass takes at its peak, from the shapes of what it allocates."""

from __future__ import annotations

from collections.abc import Sequence

from coachhook.architectures import ModelParts
from coachhook.heap import in_heap
from coachhook.second_moment import sketch_bytes

MLP_COPIES = 4  # tensors as wide as the keys that a block holds at once: gelu_new's; gated units take three
BLOCK_COPIES = 6  # tensors as wide as the hidden state beside them: residual, normed, attention's inputs and output
SCORE_BYTES = 8  # of an attention score that is written out: float32, before and after the softmax
LIBRARIES = 100_000_000
"""Bytes that torch and transformers themselves take once they run."""


def weight_bytes(parts: ModelParts) -> int:
    """Bytes of the model's weights; tied ones count once."""
    return sum(parameter.nbytes for parameter in parts.model.parameters())


def score_bytes(parts: ModelParts, length: int) -> int:
    """Bytes per token of the attention scores of a text of `length` tokens; 0 where they are never written out."""
    model, config = parts.model, parts.model.config.get_text_config()
    if config._attn_implementation != "eager":  # transformers' choice for a family: GPT-J and Gemma 2 are
        return 0
    # Older code (GPT-J) holds a block's scores until the next block has its own.
    held = 0 if model._supports_attention_backend else parts.head.weight.itemsize
    return (SCORE_BYTES + held) * config.num_attention_heads * length


def covariance_memory(
    parts: ModelParts,
    layers: Sequence[int],
    max_tokens: int,
    batch_tokens: int,
    longest: int,
    background: int,
    on_cpu: bool,
) -> dict[str, int]:
    """Bytes at the peak of `compute_covariance`, by what they are for; all on the model's device but the sample.

    With b tokens in a batch, keys of width m and hidden states of width d, a batch is largest where the last layer's
    keys are made (the other layers' keys, 4 tensors b×m and 6 tensors b×d), or where the first layer is counted (all
    keys, gathered and in float64, and the product m×m), or in the attention of a family that writes its scores out.

    Arguments:
        parts: of the model itself, or of one on the meta device.
        longest: tokens of a document that are read.
        on_cpu: whether the model is in main memory, whose heap holds small tensors in pieces.
    """
    batch = min(max(batch_tokens, longest), max_tokens)
    widths = [parts.width(layer) for layer in layers]
    widest, hidden, item = max(widths), parts.shape(0)[0], parts.head.weight.itemsize

    def wide(count: int, width: int) -> int:
        """Bytes of `count` numbers per token, in tensors of this width."""
        return in_heap(batch * item * count, batch * item * width) if on_cpu else batch * item * count

    block = wide(BLOCK_COPIES * hidden, hidden)
    making = wide(sum(widths) + (MLP_COPIES - 1) * widest, widest) + block
    counting = wide(sum(widths), widest) + 8 * batch * widest + 8 * widest**2
    attending = wide(sum(widths[:-1]), widest) + block + batch * score_bytes(parts, longest)
    return {
        "weights": weight_bytes(parts),
        "covariance sums": sum(8 * width**2 for width in widths),
        "a batch of text": max(making, counting, attending),
        "sample of keys": sum(4 * width * background for width in widths),
        "convergence check": sum(sketch_bytes(width) for width in widths) + 2 * sketch_bytes(widest),
        "libraries": LIBRARIES,
    }
