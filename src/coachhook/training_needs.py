"""What the training of an editor takes: its network in all the copies that a trainer keeps, and the loss of a batch.

Legend: N bytes of the network's weights and buffers; u requests of a batch, T tokens of a prompt with its answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from coachhook.architectures import ModelParts
from coachhook.editors.base import MethodConfig
from coachhook.editors.training import EditorTraining
from coachhook.heap import in_heap
from coachhook.speed import Speed

ANSWER_TOKENS = 4  # of a target or a probe's answer, as in CounterFact and ZsRE
_STORED = 4  # copies of the network in a checkpoint: as it is, the best one, and Adam's two moments
_IN_PIECES = 1.2  # of what a loss takes, what glibc's heap holds for it: measured by benchmarks/training_memory.py


@dataclass(frozen=True)
class TrainingShape:
    """A training in numbers.

    Attributes:
        parts: of the base model, on the meta device.
        config: the method's hyper-parameters.
        training: those of the training.
        prompt_tokens: T.
    """

    parts: ModelParts
    config: MethodConfig
    training: EditorTraining
    prompt_tokens: int

    @property
    def tokens(self) -> int:
        """u·T: of one text per request."""
        return self.training.batch_size * self.prompt_tokens

    @property
    def answers_bytes(self) -> int:
        """Logits, float32, in front of every token of one answer per request."""
        return 4 * self.training.batch_size * ANSWER_TOKENS * self.parts.head.weight.shape[0]


@dataclass(frozen=True)
class Work:
    """What one batch takes forward and back: tokens through a block, tokens through the head, multiply-adds besides."""

    blocks: int
    heads: int
    products: int


@dataclass(frozen=True)
class LossNeeds:
    """What the loss of one batch takes beside the network and the base model.

    Attributes:
        network: on the meta device.
        forward: bytes that it holds at most, until the network's own gradient begins.
        backward: bytes beside that gradient, at most.
        left: bytes that stay until the next batch's loss is there.
        tokens: read in one batch.
        work: None where no trial of the base model tells.
    """

    network: nn.Module
    forward: int
    backward: int
    left: int
    tokens: int
    work: Work | None


def network_bytes(network: nn.Module) -> int:
    """N."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def training_memory(shape: TrainingShape, loss: LossNeeds, on_cpu: bool) -> dict[str, int]:
    """Bytes on the device beside the base model: what a training always holds, and its largest moment."""
    network = network_bytes(loss.network)
    largest = max(parameter.nbytes for parameter in loss.network.parameters())
    # Of several batches in a step the gradient gathers, and one loss is there until the next one is.
    gathered, left = (network, loss.left) if shape.training.accumulate > 1 else (0, 0)
    of_weights, of_loss = 1.0, 1.0
    if on_cpu:
        of_weights, of_loss = max(_IN_PIECES, in_heap(largest, largest) / largest), _IN_PIECES
    moments = {
        "the loss of a batch": of_weights * gathered + of_loss * (left + loss.forward),
        "the gradient of a batch": of_weights * (gathered + network + (largest if gathered else 0))  # their sum
        + of_loss * loss.backward,
        "a step of Adam": of_weights * (network + (2 * largest if on_cpu else network)),  # on a GPU for all at once
        "a copy of the best network": of_weights * 2 * network,  # and the gradient
    }
    name = max(moments, key=moments.get)
    return {"the editor, the best so far, Adam's moments": _STORED * network, name: round(moments[name])}


def checkpoint_bytes(network: int) -> int:
    """A checkpoint of a network of so many bytes; written from where it lies, from a GPU by way of main memory."""
    return _STORED * network


def training_disk(network: int) -> dict[str, int]:
    """The checkpoint, which is there twice while it is replaced, and the trained editor."""
    return {"checkpoint": 2 * checkpoint_bytes(network), "trained editor": network}


def training_seconds(shape: TrainingShape, loss: LossNeeds, speed: Speed) -> float | None:
    """A rough time for all steps, should no measurement of the held-out loss end them earlier."""
    if loss.work is None:
        return None
    work, training = loss.work, shape.training
    batch = work.blocks * speed.block + work.heads * speed.head + work.products * speed.product
    return training.steps * training.accumulate * batch


def training_tokens(shape: TrainingShape, loss: LossNeeds) -> int:
    """Tokens that all steps read."""
    return shape.training.steps * shape.training.accumulate * loss.tokens
