"""What the loss of MEND's training takes (see `MendLoss`): ΔW and its graph, and two batches of text above it.

Legend: L edited layers with ΔW (d×m), w = m + d features of a token, r rank of the hypernetwork's maps, B blocks,
u requests of a batch, T tokens of a text.
"""

from __future__ import annotations

import torch

from coachhook.editors.mend_network import MendNetwork
from coachhook.stream_needs import saved_bytes_per_token
from coachhook.training_needs import ANSWER_TOKENS, LossNeeds, TrainingShape, Work

_TEXTS = 2  # per request with a gradient up to ΔW: one of its wordings, one probe; the edit's own is gone by then
_LOGITS = 7  # log-probabilities of wordings; of probes those of both models, the base's exp, and three on the way back


def mend_loss_needs(shape: TrainingShape) -> LossNeeds:
    """Bytes, tokens and work of one batch.

    The base weights have gradients switched on, so blocks below the edited layers keep their activations too, and as
    no gradient is asked of them, keep them until the whole graph is gone.
    """
    parts, layers = shape.parts, shape.config.layers
    with torch.device("meta"):
        network = MendNetwork(parts, layers, shape.training)
    outputs, inputs = parts.shape(layers[0])
    deltas = 4 * len(layers) * outputs * inputs
    transformed = 4 * len(layers) * shape.tokens * _numbers_per_token(network)
    texts = _TEXTS * shape.tokens * saved_bytes_per_token(parts)
    if parts.head.weight.itemsize < 4:  # the keys once more in float32, for ΔW k
        transformed += 4 * _TEXTS * shape.tokens * len(layers) * inputs
    below = (layers[0] + 1) * texts
    everything = len(parts.blocks) * texts
    held = deltas + transformed
    forward = max(
        held + everything + _LOGITS * shape.answers_bytes,
        # The probes' gradient of ΔW is there, that of the wordings not yet.
        held + deltas + below + (everything - below) // 2 + 2 * shape.answers_bytes,
    )
    return LossNeeds(network, forward, held + below, below, 4 * shape.tokens, _work(shape, network))


def _numbers_per_token(network: MendNetwork) -> int:
    """[u; δ], normalised, each map's change before scale, the first's before its rectifier, and what the maps give."""
    width, rank = network.first.left.shape
    return 7 * width + 2 * rank


def _work(shape: TrainingShape, network: MendNetwork) -> Work:
    """Four passes (edits, wordings, probes, and the base model on probes), three of them back to the edited layers."""
    blocks, layers, (width, rank) = len(shape.parts.blocks), shape.config.layers, network.first.left.shape
    outputs, inputs = shape.parts.shape(layers[0])
    through = shape.tokens * (4 * blocks + 3 * (blocks - layers[0]))
    maps = 3 * 4 * width * rank  # two products in each of two maps; forward, and back to what it is of two factors
    dense = 3 * (1 + _TEXTS) * outputs * inputs
    heads = (4 + 3) * shape.training.batch_size * ANSWER_TOKENS
    return Work(through, heads, shape.tokens * len(layers) * (maps + dense))
