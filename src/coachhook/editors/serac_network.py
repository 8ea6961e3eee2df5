"""SERAC's two small transformers, which read the base model's tokens: a scope classifier and a counterfactual model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from coachhook.architectures import ARCHITECTURES, ModelParts
from coachhook.editors.trained_editor import TrainedEditorError
from coachhook.editors.training import EditorTraining
from coachhook.tokens import pad


class SeracTraining(EditorTraining):
    """Hyper-parameters of the training; defaults are EasyEdit's, and GPT-2's smallest sizes for what is built."""

    learning_rate: float = Field(1e-5, gt=0, description="Adam's learning rate")
    scope_model: str | None = Field(None, description="hub name or path the classifier starts from; null: built")
    counterfactual_model: str | None = Field(None, description="the same for the counterfactual model")
    width: int = Field(768, ge=8, description="hidden size of a transformer that is built")
    blocks: int = Field(12, ge=1, description="its number of blocks")
    heads: int = Field(12, ge=1, description="its attention heads")
    embedding_width: int = Field(768, ge=1, description="size of the classifier's embeddings")


class SeracNetwork(nn.Module):
    """Both transformers, built from `described` (see `describe`), with random weights or, if `pretrained`, the hub's.

    Arguments:
        parts: the base model, whose token embeddings and head they read and answer through.
    """

    def __init__(self, parts: ModelParts, training: SeracTraining, described: dict, pretrained: bool = False):
        super().__init__()
        names = {"scope": training.scope_model, "counterfactual": training.counterfactual_model}
        widths = {"scope": training.embedding_width, "counterfactual": parts.head.weight.shape[1]}
        readers = {
            role: Reader(parts, _configuration(described[role]), names[role], widths[role], pretrained)
            for role in names
        }
        self.scope, self.counterfactual = readers["scope"], readers["counterfactual"]
        self.log_slope = nn.Parameter(torch.tensor(3.0))
        self.margin = nn.Parameter(torch.tensor(0.5))

    def embed(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time width"]:
        """Of each token the embedding, of length 1, of the text up to and with it."""
        return functional.normalize(self.scope(ids), dim=-1)

    def scores(
        self, texts: Float[Tensor, "... width"], keys: Float[Tensor, "entries width"]
    ) -> Float[Tensor, "... entries"]:
        """Log-odds that a text is in an entry's scope: slope · (cosine − margin)."""
        return self.log_slope.exp() * (texts @ keys.T - self.margin)

    def answers(
        self, entries: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, "pairs time d"], list[int]]:
        """The counterfactual model's last hidden states over each entry joined to its text, and where texts start."""
        joined = pad([(*entry, *text) for entry, text in zip(entries, texts, strict=True)], 0, self.margin.device)
        return self.counterfactual(joined.ids), [len(entry) for entry in entries]

    @property
    def longest(self) -> tuple[int, int]:
        """Most tokens that the classifier and the counterfactual model can read."""
        return tuple(r.backbone.config.max_position_embeddings for r in (self.scope, self.counterfactual))


class Reader(nn.Module):
    """A causal transformer with one vector of size `out` per token; texts are padded on the right and need no mask.

    One built from configuration reads the base model's token embeddings, which stay as they are, through a linear
    map; one with a hub name has its own. Dropout stays off: training draws nothing from the global generator.
    """

    def __init__(self, parts: ModelParts, config: PreTrainedConfig, name: str | None, out: int, pretrained: bool):
        super().__init__()
        embeddings = parts.model.get_input_embeddings()
        self._embed = embeddings.forward  # a bound method: the base model's weights are not this module's
        self.backbone = AutoModel.from_pretrained(name) if name and pretrained else AutoModel.from_config(config)
        self.backbone.float()
        self.input = None if name else nn.Linear(embeddings.weight.shape[1], config.hidden_size)
        self.output = nn.Linear(config.hidden_size, out)

    def forward(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time out"]:
        if self.input is None:
            hidden = self.backbone(input_ids=ids, use_cache=False).last_hidden_state
        else:
            with torch.no_grad():
                vectors = self._embed(ids).float()
                vectors = functional.layer_norm(vectors, vectors.shape[-1:])
            hidden = self.backbone(inputs_embeds=self.input(vectors), use_cache=False).last_hidden_state
        return self.output(hidden)

    def train(self, mode: bool = True) -> Reader:
        super().train(mode)
        self.backbone.eval()
        return self


def describe(parts: ModelParts, tokenizer: PreTrainedTokenizerBase, training: SeracTraining) -> dict:
    """Both transformers' configurations as JSON: with them a trained editor needs no hub.

    Raises:
        TrainedEditorError: a hub model is not causal, or reads other tokens than the base model.
    """
    described = {}
    for role, name in (("scope", training.scope_model), ("counterfactual", training.counterfactual_model)):
        config = _built(parts, training) if name is None else _hub(f"{role}_model", name, tokenizer)
        described[role] = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
    return described


def _configuration(described: dict) -> PreTrainedConfig:
    return CONFIG_MAPPING[described["model_type"]].from_dict(described)


def _built(parts: ModelParts, training: SeracTraining) -> LlamaConfig:
    """Rotary positions, since what is copied from an entry stands at any distance."""
    return LlamaConfig(
        vocab_size=1,  # it is given embeddings
        hidden_size=training.width,
        intermediate_size=4 * training.width,
        num_hidden_layers=training.blocks,
        num_attention_heads=training.heads,
        max_position_embeddings=2 * parts.context_length,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
    )


def _hub(field: str, name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(name)
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise TrainedEditorError(f"{field}: {name} is of family {config.model_type}; choose a causal one of {known}")
    theirs, ours = AutoTokenizer.from_pretrained(name).get_vocab(), tokenizer.get_vocab()
    if any(theirs.get(token) != index for token, index in ours.items()):
        raise TrainedEditorError(f"{field}: {name} reads other tokens than the base model; choose one with the same")
    return config
