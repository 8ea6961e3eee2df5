"""Targets: for each request the hidden state z that makes the model say the new answer (MEMIT, section 4.2).

A whole batch is optimised together. Nothing at or below the last edited layer depends on δ, and nothing left of the
subject's last token sees it, so only the blocks above and the tokens from there on are run again in each step.

Legend: h hidden state at the subject's last token, output of the last edited block; z = h + δ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.edit_request import EditRequest, quoted
from coachhook.edited_model import EditorError
from coachhook.keys import encode_edit
from coachhook.progress import tell
from coachhook.tokens import EncodedPrompt, encode, pad_id
from coachhook.tracing import BlockInputs, block_inputs


@dataclass(frozen=True)
class TargetSettings:
    """How targets are optimised (MEMIT's names: v_num_grad_steps, v_lr, clamp_norm_factor, kl_factor, v_weight_decay).

    Attributes:
        stop_loss: a request whose loss is below this is done.
    """

    steps: int
    learning_rate: float
    clamp: float
    kl_factor: float
    weight_decay: float
    stop_loss: float = 0.05


@dataclass(frozen=True)
class Targets:
    """Attributes: values z, hidden h, and each request's last loss (negative log-likelihood in nats + penalties)."""

    values: Float[Tensor, "u d"]
    hidden: Float[Tensor, "u d"]
    losses: Float[Tensor, " u"]


def optimise_targets(
    parts: ModelParts,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    layer: int,
    prefixes: Sequence[str],
    settings: TargetSettings,
) -> Targets:
    """Targets z of a batch at the output of block `layer`.

    Per request, the mean over contexts (the plain prompt and each prefix) of the target's negative log-likelihood
    (mean over its tokens), + kl_factor · KL(base ‖ edited) at the subject's last token of "{subject} is a",
    + weight_decay · ‖δ‖/‖h‖²; Adam, after each step projected to ‖δ‖ ≤ clamp · ‖h‖.

    Raises:
        EditorError: a request's loss is not finite.
    """
    tail = _Tail(parts, tokenizer, requests, layer, prefixes)
    hidden = tail.hidden
    norm = hidden.norm(dim=-1)
    delta = torch.zeros_like(hidden, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=settings.learning_rate)
    active = torch.ones(len(requests), dtype=torch.bool, device=hidden.device)
    losses = torch.full((len(requests),), torch.inf, device=hidden.device)
    for step in range(settings.steps + 1):
        tell("finding targets", step, settings.steps)
        working = active.nonzero()[:, 0]
        likelihood, divergence = tail.losses(delta, working)
        penalty = delta[working].norm(dim=-1) / norm[working].square()
        loss = likelihood + settings.kl_factor * divergence + settings.weight_decay * penalty
        losses[working] = loss.detach()
        active = active & (losses >= settings.stop_loss)
        if step == settings.steps or not active.any():
            break
        (delta.grad,) = torch.autograd.grad(loss.sum(), delta)
        before = delta.detach().clone()
        optimiser.step()
        with torch.no_grad():
            factor = (settings.clamp * norm / delta.norm(dim=-1).clamp_min(1e-12)).clamp_max(1.0)
            delta.copy_(torch.where(active[:, None], delta * factor[:, None], before))
    tell("finding targets", settings.steps, settings.steps)
    _check_finite(losses, requests)
    return Targets(hidden + delta.detach(), hidden, losses)


def _check_finite(losses: Float[Tensor, " u"], requests: Sequence[EditRequest]) -> None:
    for request, loss in zip(requests, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise EditorError(
                f"no target is found for {quoted(request.text)}, its loss is {loss}; look for NaN or infinite values "
                "in the model's weights, or lower target_lr"
            )


class _FrozenCache(DynamicCache):
    """Attention keys and values of the tokens left of the subject's last; it never grows."""

    def __init__(self, filled: DynamicCache, width: int):
        super().__init__()
        self._pairs = [(layer.keys[..., :width, :], layer.values[..., :width, :]) for layer in filled.layers]
        self._rows: Tensor | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._pairs[layer_idx][0].shape[-2]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length(layer_idx) + query_length, 0

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Answer for these rows only."""
        self._rows = rows

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._pairs[layer_idx]
        if self._rows is not None:
            rows = self._rows.to(keys.device)
            keys, values = keys[rows], values[rows]
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)


class _Tail:
    """The model above `layer`, from the subject's last token on, for every prompt of a batch.

    Rows are padded on the left so that the subjects' last tokens share one column.
    """

    def __init__(
        self,
        parts: ModelParts,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        layer: int,
        prefixes: Sequence[str],
    ):
        self._parts, self._layer = parts, layer
        contexts = ["", *prefixes]
        rows = [
            encode_edit(tokenizer, request, prefix, request.target_new) for request in requests for prefix in contexts
        ]
        essence = [encode(tokenizer, f"{r.subject} is a", subject_end=len(r.subject)) for r in requests]
        self._edits = len(rows)
        self._run_below([*rows, *essence], pad_id(tokenizer), parts.input_device)
        count = torch.arange(len(requests), device=self._suffix.device)
        self._owner = torch.cat([count.repeat_interleave(len(contexts)), count])
        self._place_answers(rows, len(contexts), self._suffix.device)
        self.hidden: Float[Tensor, "u d"] = self._suffix[: self._edits : len(contexts), 0].float()
        with torch.no_grad():
            normed = self._normed(self._suffix, None)[self._edits :, 0]
            self._base = self._log_probabilities(normed)

    def losses(self, delta: Float[Tensor, "u d"], working: Int[Tensor, " w"]) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of the target and KL(base ‖ edited), in nats, of the requests in `working`."""
        chosen = torch.isin(self._owner, working)
        rows = chosen.nonzero()[:, 0]
        hidden = self._suffix[rows].clone()
        hidden[:, 0] = (hidden[:, 0].float() + delta[self._owner[rows]]).to(hidden.dtype)
        normed = self._normed(hidden, rows)
        place = torch.full_like(self._owner, -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        wanted = chosen[self._answer_row]
        row, column = place[self._answer_row[wanted]], self._answer_column[wanted]
        nll = -self._log_probabilities(normed[row, column]).gather(1, self._answer_id[wanted, None])[:, 0]
        total = torch.zeros(len(delta), device=nll.device)
        total = total.index_add(0, self._owner[self._answer_row[wanted]], nll * self._answer_weight[wanted])
        edited = self._log_probabilities(normed[rows >= self._edits, 0])
        base = self._base[working]
        return total[working], (base.exp() * (base - edited)).sum(-1)

    def _run_below(self, rows: Sequence[EncodedPrompt], fill: int, device: torch.device) -> None:
        """One pass over the whole prompts: hidden states above `layer`, and the cache left of the subjects."""
        anchor = max(row.subject_last for row in rows)
        width = max(anchor - row.subject_last + len(row.ids) for row in rows)
        ids = torch.full((len(rows), width), fill)
        real = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            start = anchor - row.subject_last
            ids[index, start : start + len(row.ids)] = torch.tensor(row.ids)
            real[index, start : start + len(row.ids)] = 1
        ids, real = ids.to(device), real.to(device)
        positions = (real.cumsum(-1) - 1).clamp_min(0)
        above = range(self._layer + 1, len(self._parts.blocks))
        run = self._parts.backbone
        outputs: dict[str, Tensor] = {}
        handle = self._parts.blocks[self._layer].register_forward_hook(
            lambda module, args, output: outputs.update(hidden=output[0] if isinstance(output, tuple) else output)
        )
        with torch.no_grad():
            # Not the cache the model would make: with a sliding window that one drops the first tokens.
            cache = DynamicCache()
            run(input_ids=ids, attention_mask=real, position_ids=positions, past_key_values=cache, use_cache=True)
            handle.remove()
            self._cache = _FrozenCache(cache, anchor)
            self._calls: dict[int, BlockInputs] = {}
            if above:
                with block_inputs(self._parts, above) as self._calls:
                    run(
                        input_ids=ids[:, anchor:],
                        attention_mask=real,
                        position_ids=positions[:, anchor:],
                        past_key_values=self._cache,
                        use_cache=True,
                    )
        self._suffix: Float[Tensor, "rows suffix d"] = outputs["hidden"][:, anchor:]

    def _place_answers(self, rows: Sequence[EncodedPrompt], contexts: int, device: torch.device) -> None:
        """Which row and column predicts which target token, and its weight in its request's mean."""
        places = [
            (index, position - 1 - row.subject_last, row.ids[position], 1 / len(row.answer_ids) / contexts)
            for index, row in enumerate(rows)
            for position in range(row.answer_start, len(row.ids))
        ]
        row, column, token, weight = zip(*places, strict=True)
        self._answer_row = torch.tensor(row, device=device)
        self._answer_column = torch.tensor(column, device=device)
        self._answer_id = torch.tensor(token, device=device)
        self._answer_weight = torch.tensor(weight, device=device)

    def _log_probabilities(self, normed: Float[Tensor, "n e"]) -> Float[Tensor, "n vocabulary"]:
        return self._parts.head(normed).float().log_softmax(-1).to(self._suffix.device)

    def _normed(self, hidden: Float[Tensor, "rows suffix d"], rows: Tensor | None) -> Float[Tensor, "rows suffix e"]:
        """Hidden states after the last block and final norm (the head is applied where it is needed)."""
        self._cache.select(rows)
        for block, call in self._calls.items():
            hidden = call.run(self._parts.blocks[block], hidden, rows)
        return self._parts.final_norm(hidden).to(self._suffix.device)
