"""What the loss of SERAC's training takes (see `SeracLoss`): the graphs of its two readers, and the base head's logits.

Legend: u requests of a batch, T tokens of a text.
"""

from __future__ import annotations

import torch

from coachhook.editors.serac_network import Reader, SeracNetwork, SeracTraining, describe
from coachhook.model_shape import model_shape, read_config
from coachhook.stream_needs import saved_bytes_per_token
from coachhook.training_needs import ANSWER_TOKENS, LossNeeds, TrainingShape, network_bytes

_TEXTS = 4  # per request that the classifier reads: an entry, one of its wordings, two probes
_ENTRIES = 3  # per request that they are scored against: itself and its probes
_JOINED = 2  # texts per request that the counterfactual model reads, joined to one: an entry, a wording
_SCORES = 6  # scores of tokens against entries: as such, scaled, masked, with "none", and two on the way back
_LOGITS = 3  # logits or their gradient, log-probabilities and theirs


def serac_loss_needs(shape: TrainingShape) -> LossNeeds:
    """Bytes and tokens of one batch. A trial of the base model tells nothing of the readers' time."""
    network, requests = _network(shape), shape.training.batch_size
    scores = 4 * _SCORES * (_TEXTS - 1) * shape.tokens * _ENTRIES * requests
    scope = _TEXTS * shape.tokens * _kept_per_token(network.scope) + scores
    answers = _LOGITS * shape.answers_bytes * (ANSWER_TOKENS + 1) // ANSWER_TOKENS  # and the end of text
    counterfactual = _JOINED * shape.tokens * _kept_per_token(network.counterfactual) + answers
    # The counterfactual model's gradient is whole before the classifier's begins.
    backward = max(0, scope - network_bytes(network.scope))
    return LossNeeds(network, scope + counterfactual, backward, 0, (_TEXTS + _JOINED) * shape.tokens, None)


def _network(shape: TrainingShape) -> SeracNetwork:
    """On the meta device; of a reader from the hub the configuration only is read, and no tokenizer."""
    training: SeracTraining = shape.training
    named = {"scope": training.scope_model, "counterfactual": training.counterfactual_model}
    built = describe(shape.parts, None, training.model_copy(update={f"{role}_model": None for role in named}))
    described = {role: built[role] if name is None else read_config(name).to_dict() for role, name in named.items()}
    with torch.device("meta"):
        return SeracNetwork(shape.parts, training, described)


def _kept_per_token(reader: Reader) -> int:
    """Bytes for the gradient: of the blocks, of the maps before and behind them, and of the final norm."""
    backbone = model_shape(reader.backbone.config, "float32")
    embeddings = 0 if reader.input is None else reader.input.in_features
    ends = embeddings + 4 * reader.output.in_features + 2 * reader.output.out_features
    return len(backbone.blocks) * saved_bytes_per_token(backbone) + 4 * ends
