"""Where a model keeps its blocks, rewrite modules, norm and head: found in the loaded model, whatever its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coachhook.devices import execution_device, weights_at_hand
from coachhook.errors import CoachHookError
from coachhook.unknown_model import explain_unknown


class ArchitectureError(CoachHookError, ValueError):
    """The model's parts are not found or not what they should be, or a layer asked for does not exist."""


@dataclass(frozen=True)
class Architecture:
    """Dotted names as in `model.named_modules()`, with or without the name of the backbone in front.

    Attributes:
        blocks: the list of transformer blocks.
        rewrite_module: the MLP's down-projection, named from a block.
        final_norm: what follows the last block.
        project_out: what follows the final norm, where embeddings are of another width than hidden states (OPT-350M).
    """

    blocks: str
    rewrite_module: str
    final_norm: str
    project_out: str | None = None

    @classmethod
    def of(cls, declared: Architecture | Mapping[str, str]) -> Architecture:
        """Raises ArchitectureError for a mapping with missing or unknown keys."""
        if isinstance(declared, Architecture):
            return declared
        names = [field.name for field in fields(cls)]
        missing = [name for name in names[:3] if not isinstance(declared.get(name), str)]
        unknown = [name for name in declared if name not in names]
        if missing or unknown:
            wrong = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is unknown"
            raise ArchitectureError(
                f"architecture: {wrong}; give {', '.join(names[:3])} (and project_out if there is one)"
            )
        return cls(**declared)


_GPT2 = Architecture("h", "mlp.c_proj", "ln_f")
_LLAMA = Architecture("layers", "mlp.down_proj", "norm")

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": _GPT2,
    "gptj": Architecture("h", "mlp.fc_out", "ln_f"),
    "gpt_neox": Architecture("layers", "mlp.dense_4h_to_h", "final_layer_norm"),
    "opt": Architecture("decoder.layers", "fc2", "decoder.final_layer_norm", "decoder.project_out"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gemma3": _LLAMA,
    "phi": Architecture("layers", "mlp.fc2", "final_layernorm"),
    "phi3": _LLAMA,
}
"""By the model type of transformers, which is only tried first: a model of any type with such parts is known."""

_CONTEXT_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")

_declared: WeakKeyDictionary[PreTrainedModel, Architecture] = WeakKeyDictionary()


def declare_architecture(model: PreTrainedModel, architecture: Architecture | Mapping[str, str]) -> None:
    """Say where `model`, this very object, keeps its parts; it holds wherever they are asked for, as long as it lives.

    Raises:
        ArchitectureError: the parts are not there.
    """
    _declared[model] = ModelParts(model, architecture).architecture


def declared_architecture(model: PreTrainedModel) -> Architecture | None:
    """What was declared for this model; None where its parts are found without."""
    return _declared.get(model)


class ModelParts:
    """The parts of a causal language model that editing needs.

    `backbone` is the model without its head (its output is the normed last hidden state), `blocks` its
    transformer blocks in order, `final_norm` what follows the last one, `head` maps normed hidden states (…, d) to
    the model's own logits (…, vocabulary).

    Arguments:
        architecture: where the parts are; without it, what was declared for the model, or what is found in it.

    Raises:
        ArchitectureError: the parts are not found; says which modules there are, and how to declare them.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture | Mapping[str, str] | None = None):
        self.model = model
        self.backbone: nn.Module = model.base_model
        self.architecture = _resolve(model, architecture)
        roots = _roots(model)
        self.blocks: nn.ModuleList = _part(roots, self.architecture.blocks)
        self._rewrite_name = self.architecture.rewrite_module
        after = (self.architecture.final_norm, self.architecture.project_out)
        self._after_blocks = [module for name in after if name and (module := _part(roots, name)) is not None]
        self.head = Head(model)
        self.context_length: int = _context_length(model.config)

    def final_norm(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... e"]:
        """What the head is given, from the last block's output."""
        for module in self._after_blocks:
            hidden = module(hidden)
        return hidden

    def rewrite_module(self, layer: int) -> nn.Module:
        """The down-projection of block `layer`.

        Raises:
            ArchitectureError: the model has no such layer.
        """
        if not 0 <= layer < len(self.blocks):
            raise ArchitectureError(f"layers: {layer} does not exist, the model has layers 0 to {len(self.blocks) - 1}")
        return _rewrite_module(self.blocks[layer], self._rewrite_name)

    def shape(self, layer: int) -> tuple[int, int]:
        """(d, m) of the rewrite module at `layer`: widths of its values and of its keys."""
        return tuple(weight_matrix(self.rewrite_module(layer)).shape)

    def width(self, layer: int) -> int:
        """m, the width of the keys at `layer`."""
        return self.shape(layer)[1]

    def base_weight(self, layer: int) -> Float[Tensor, "d m"]:
        """W0 of a layer; read from where it is kept, if it is offloaded."""
        module = self.rewrite_module(layer)
        with weights_at_hand(module):
            return weight_matrix(module).detach()

    def device(self, layer: int) -> torch.device:
        """Where the rewrite module of `layer` computes, and so where all that belongs to the layer is kept."""
        return execution_device(self.rewrite_module(layer))

    @property
    def input_device(self) -> torch.device:
        """Where the model wants token ids."""
        return execution_device(self.model.get_input_embeddings())


class Head:
    """From normed hidden states (…, width) to the model's own logits (…, vocabulary).

    Gemma caps its logits behind the output embeddings: cap · tanh(logits / cap).
    """

    def __init__(self, model: PreTrainedModel):
        self._module = model.get_output_embeddings()
        if self._module is None:
            raise ArchitectureError(f"{type(model).__name__} has no head; load it with AutoModelForCausalLM")
        self._cap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    def __call__(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... vocabulary"]:
        logits = self._module(hidden)
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    @property
    def weight(self) -> Float[Tensor, "vocabulary width"]:
        """The output embeddings; an empty shell while they are offloaded."""
        return self._module.weight


def weight_matrix(module: nn.Module) -> Float[Tensor, "d m"]:
    """The rewrite module's W0 as (output d) × (input m); a view. GPT-2 keeps its transpose (`Conv1D`)."""
    weight = module.weight
    return weight.T if isinstance(module, Conv1D) else weight


def _resolve(model: PreTrainedModel, given: Architecture | Mapping[str, str] | None) -> Architecture:
    given = declared_architecture(model) if given is None else Architecture.of(given)
    if given is not None:
        problem = _misfit(model, given)
        if problem:
            raise ArchitectureError(f"architecture: {problem}. {explain_unknown(model)}")
        return given
    hint = ARCHITECTURES.get(model.config.model_type)
    for architecture in dict.fromkeys([*([hint] if hint else []), *ARCHITECTURES.values()]):
        if _misfit(model, architecture) is None:
            return architecture
    raise ArchitectureError(f"model type {model.config.model_type!r} is unknown: {explain_unknown(model)}")


def _misfit(model: PreTrainedModel, architecture: Architecture) -> str | None:
    """Why the model does not have these parts; None where it has."""
    roots = _roots(model)
    blocks = _part(roots, architecture.blocks)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        return f"blocks: {architecture.blocks!r} is no list of blocks of this model"
    for index, block in enumerate(blocks):
        module = _rewrite_module(block, architecture.rewrite_module)
        if not isinstance(getattr(module, "weight", None), Tensor) or module.weight.ndim != 2:
            return f"rewrite_module: block {index} has no matrix {architecture.rewrite_module!r}"
        if weight_matrix(module).shape[0] != model.config.get_text_config().hidden_size:
            return f"rewrite_module: {architecture.rewrite_module!r} does not lead back to the hidden states"
    if _part(roots, architecture.final_norm, missing=_MISSING) is _MISSING:
        return f"final_norm: there is no {architecture.final_norm!r}"
    return None


_MISSING = object()


def _roots(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Where names start: the backbone, what reads the text in one that sees images too (Gemma 3), the whole model."""
    backbone = model.base_model
    text = getattr(backbone, "language_model", None)
    return (backbone, model) if text is None else (backbone, text, model)


def _part(roots: Iterable[nn.Module], name: str, missing: object = None) -> nn.Module | None:
    """The part of that dotted name below the first root that has it. OPT-350M has a norm that is None."""
    for root in roots:
        found: object = root
        for step in name.split("."):
            found = getattr(found, step, _MISSING)
        if found is not _MISSING:
            return found
    return missing


def _rewrite_module(block: nn.Module, name: str) -> nn.Module | None:
    module = _part([block], name)
    return getattr(module, "base_layer", module)  # behind the wrapper of a peft adapter


def _context_length(config: PreTrainedConfig) -> int:
    text = config.get_text_config()
    for name in _CONTEXT_LENGTHS:
        length = getattr(text, name, None)
        if isinstance(length, int):
            return length
    raise ArchitectureError(
        f"the configuration has none of {', '.join(_CONTEXT_LENGTHS)}; set model.config.max_position_embeddings to the "
        "longest text in tokens"
    )
