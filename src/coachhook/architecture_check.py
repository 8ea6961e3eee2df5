"""A short run of a loaded model, to see that the parts found or declared are what it computes with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coachhook.architectures import ArchitectureError, ModelParts

_TOLERANCE = 0.02  # of the largest logit; half precision rounds within it


@torch.no_grad()
def check_parts(parts: ModelParts) -> None:
    """Hold the model's own logits on three tokens to those from its last block, final norm and head.

    Raises:
        ArchitectureError: they differ.
    """
    start = parts.model.get_input_embeddings().weight.shape[0] // 2  # the first ids may be special
    ids = torch.arange(start, start + 3, device=parts.input_device)[None]
    outputs: list[Tensor] = []

    def keep(block: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handle = parts.blocks[-1].register_forward_hook(keep)
    try:
        logits = parts.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    finally:
        handle.remove()
    given = parts.head(parts.final_norm(outputs[-1])).to(logits.device)
    if given.shape != logits.shape or (given - logits).abs().max() > _TOLERANCE * logits.abs().max():
        names = parts.architecture
        raise ArchitectureError(
            f"final_norm: the model's logits are not those of its last block ({names.blocks}), {names.final_norm} and "
            "head; declare what follows the blocks (architecture), or this model's head is not supported"
        )
