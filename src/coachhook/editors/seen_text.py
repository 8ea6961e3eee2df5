"""The texts behind a model's forward calls, also where a cache holds their beginnings."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Cache

from coachhook.errors import CoachHookError


class SeenTextError(CoachHookError, ValueError):
    """A forward call does not say which text it continues."""


@dataclass(frozen=True)
class Text:
    """Attributes: ids and mask of the whole texts as the model was given them, and how many of the last are new."""

    ids: Int[Tensor, "batch time"]
    real: Bool[Tensor, "batch time"]
    new: int


class SeenText:
    """Remembers, as long as a cache lives, the ids that filled it.

    Beam search moves the rows of a cache; they are found again by their last attention keys, which differ where the
    texts do.
    """

    def __init__(self):
        self._caches: WeakKeyDictionary[Cache, tuple[Tensor, Tensor | None]] = WeakKeyDictionary()

    def read(self, args: tuple, kwargs: dict, output) -> Text:
        """The texts of a call of the backbone, given its arguments and its output.

        Raises:
            SeenTextError: the call has embeddings instead of ids, or a cache whose text was not seen.
        """
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise SeenTextError("inputs_embeds: the edits depend on the text; give input_ids")
        new = ids.shape[1]
        cache = kwargs.get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if cache is not None:
            ids = self._continue(cache, ids)
        mask = kwargs.get("attention_mask")
        plain = isinstance(mask, Tensor) and mask.ndim == 2
        real = mask[:, : ids.shape[1]].bool() if plain else torch.ones_like(ids, dtype=torch.bool)
        return Text(ids, real, new)

    def _continue(self, cache: Cache, ids: Int[Tensor, "batch new"]) -> Int[Tensor, "batch time"]:
        past = int(cache.get_seq_length()) - ids.shape[1]
        if past > 0:
            before, mark = self._caches.get(cache, (ids[:, :0], None))
            if before.shape[1] < past or len(before) != len(ids):
                raise SeenTextError("past_key_values: its text was not seen with these edits; start without a cache")
            ids = torch.cat([self._rows(cache, past, before, mark)[:, :past], ids], 1)
        self._caches[cache] = ids, _last_keys(cache, ids.shape[1])
        return ids

    def _rows(self, cache: Cache, past: int, before: Tensor, mark: Tensor | None) -> Tensor:
        now = _last_keys(cache, past)
        if mark is None or now is None or before.shape[1] != past or torch.equal(now, mark):
            return before
        same = (now[:, None] == mark[None]).all(-1)
        if not same.any(1).all():
            raise SeenTextError("past_key_values: its rows were changed; start without a cache")
        return before[same.int().argmax(1)]


def _last_keys(cache: Cache, length: int) -> Tensor | None:
    """Last layer's attention keys of the token at `length` − 1, row by row; None where the cache does not keep them."""
    keys = getattr(cache.layers[-1], "keys", None)
    return None if keys is None or keys.shape[-2] < length else keys[:, :, length - 1].flatten(1).clone()
