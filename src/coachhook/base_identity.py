"""What tells the base model of saved edits from others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from coachhook.architectures import Architecture, ModelParts, declared_architecture
from coachhook.covariance_file import model_digest
from coachhook.journal import JournalError

_SAMPLE = 512  # elements of each tensor
_ROWS = 256
_NO_MATTER = ("_token_id", "dropout", "drop", "use_cache", "initializer_range", "vocab_size")


class BaseModelIdentity(BaseModel):
    """A base model by its kind, the settings and a sample of the weights of its blocks, and the edited weights.

    Attributes:
        digests: of all of each edited layer's rewrite module.
        blocks: of a sample of each block's weights; none where weights are offloaded, or in older files.
        around: the same of all other weights, such as embeddings, head and final norm; None there, and in older files.
        settings: of the configuration, as far as the outputs for given tokens depend on them; none in older files.
        architecture: where it was declared.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    revision: str | None
    family: str
    layers: int
    width: int
    dtype: str
    digests: dict[int, str]
    blocks: list[str] = []
    around: str | None = None
    settings: dict = {}
    architecture: Architecture | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, edited: Sequence[int]) -> BaseModelIdentity:
        """edited: the layers to be edited; those that the model lacks have no digest."""
        blocks = ModelParts(model).blocks
        inside = set(blocks.parameters())
        around = [weight for weight in model.parameters() if weight not in inside]
        return cls(
            name=model.name_or_path,
            revision=getattr(model.config, "_commit_hash", None),
            family=model.config.model_type,
            layers=len(blocks),
            width=model.config.get_text_config().hidden_size,
            dtype=str(model.dtype).removeprefix("torch."),
            digests={layer: model_digest(model, [layer]) for layer in edited if layer < len(blocks)},
            blocks=[] if _any_offloaded(inside) else [_sample_digest(block.parameters()) for block in blocks],
            around=None if _any_offloaded(around) else _sample_digest(around, rows=_ROWS),
            settings=_settings(model.config),
            architecture=declared_architecture(model),
        )

    def differences(self, other: BaseModelIdentity) -> list[str]:
        """What of `other` is not as it is here, in words; names and revisions do not count."""
        found = [
            f"{field} {getattr(self, field)}, not {getattr(other, field)}"
            for field in ("family", "layers", "width", "dtype")
            if getattr(self, field) != getattr(other, field)
        ]
        if found:
            return found
        found = [
            f"{name} {self.settings[name]}, not {other.settings[name]}"
            for name in self.settings
            if name in other.settings and self.settings[name] != other.settings[name]
        ]
        changed = {layer for layer, digest in self.digests.items() if other.digests.get(layer) != digest}
        sampled = enumerate(zip(self.blocks, other.blocks, strict=False))  # one of them may have none
        changed |= {layer for layer, (ours, theirs) in sampled if ours != theirs}
        if changed:
            found.append(f"other weights at layers {', '.join(map(str, sorted(changed)))}")
        elif None not in (self.around, other.around) and self.around != other.around:
            found.append("other weights outside of the layers (embeddings, head or final norm)")
        return found

    def load(self) -> PreTrainedModel:
        """The base model by its name.

        Raises:
            JournalError: it has none, or nothing is found under it.
        """
        if not self.name:
            raise JournalError("model: the saved edits know no name of their base model; give the model itself")
        try:
            dtype = getattr(torch, self.dtype)
            return AutoModelForCausalLM.from_pretrained(self.name, revision=self.revision, dtype=dtype)
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise JournalError(f"model: {self.name} cannot be loaded ({reason}); give the model itself") from None


def _settings(config: PreTrainedConfig) -> dict:
    """What a model type adds to every configuration, less what is for training, generating or the vocabulary's size."""
    text = config.get_text_config()
    common = PreTrainedConfig().to_dict()
    return {
        name: value
        for name, value in text.to_dict().items()
        if name not in common
        and not name.startswith(("_", "summary_"))
        and not name.endswith(_NO_MATTER)
        and isinstance(value, str | int | float | bool | list | dict | None)
    }


def _any_offloaded(weights: Iterable[Tensor]) -> bool:
    return any(weight.is_meta for weight in weights)


def _sample_digest(weights: Iterable[Tensor], rows: int | None = None) -> str:
    """Digest of evenly spaced elements of each tensor, whatever these are called: milliseconds.

    Arguments:
        rows: only of so many first ones of each, which a vocabulary that was made larger still has.
    """
    digests = []
    for weight in weights:
        flat = weight.detach()[:rows].flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLE)].float().cpu().contiguous()
        shape = tuple(weight.shape if rows is None else weight.shape[1:])
        digests.append(hashlib.sha256(repr(shape).encode() + sample.numpy().tobytes()).hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16]
