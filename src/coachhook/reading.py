"""Ordinary text as batches of token ids, tokenised once, and a place in it from which a killed job reads on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from coachhook.solver import CovarianceError
from coachhook.tokens import batches_by_length

_WINDOW = 16  # batches sorted by length together: padding stays small while texts may be a stream


class Reader:
    """Documents as token ids, each cut at `longest` and all at `budget`, in batches of similar length.

    Arguments:
        texts: documents. To read on from a `state`, they are read past up to its place and compared.
        longest: tokens of a document that are read.
        budget: tokens in all; the last document is cut there.
        batch_tokens: padded tokens of a batch, unless one document alone is longer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: Iterable[str],
        longest: int,
        budget: int,
        batch_tokens: int,
    ):
        self._tokenizer, self._texts, self._stream = tokenizer, texts, iter(texts)
        self._longest, self._left, self._batch_tokens = longest, budget, batch_tokens
        self._window: list[list[int]] = []
        self._done = 0  # batches of the window that were given out
        self.documents = 0  # read so far
        self._digest = b""

    def batches(self) -> Iterator[list[list[int]]]:
        """All batches from here on."""
        while True:
            for batch in _sorted_batches(self._window, self._batch_tokens)[self._done :]:
                self._done += 1
                yield batch
            self._fill()
            if not self._window:
                return

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Tensors and JSON values that `restore` goes on from: what is read, and what of it is still to be given."""
        ids = torch.tensor([token for document in self._window for token in document], dtype=torch.int64)
        lengths = torch.tensor([len(document) for document in self._window], dtype=torch.int64)
        place = {"documents": self.documents, "digest": self._digest.hex()}
        info = place | {"left": self._left, "batches_done": self._done}
        return {"window": ids, "window_lengths": lengths}, info

    def restore(self, tensor: Callable[[str], Tensor], info: Mapping) -> bool:
        """Read on from a `state`; False, and from the start, where it was not these texts that had been read.

        `tensor` reads one of its tensors.

        Raises:
            CovarianceError: it was not, and the texts cannot be read again from the start.
        """
        if not self._read_past(info["documents"], bytes.fromhex(info["digest"])):
            if self._stream is self._texts:
                raise CovarianceError(
                    "texts: they are not those that the unfinished covariance was begun on; delete its file, or "
                    "give the texts in a form that can be read twice (a list)"
                )
            self._stream, self.documents, self._digest = iter(self._texts), 0, b""
            return False
        ids, lengths = tensor("window").tolist(), tensor("window_lengths").tolist()
        ends = torch.tensor(lengths).cumsum(0).tolist()
        self._window = [ids[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        self._left, self._done = info["left"], info["batches_done"]
        return True

    def _read_past(self, documents: int, digest: bytes) -> bool:
        for _ in range(documents):
            if self._next() is None:
                return False
        return self._digest == digest

    def _next(self) -> str | None:
        text = next(self._stream, None)
        if text is not None:
            self.documents += 1
            self._digest = hashlib.sha256(self._digest + text.encode(errors="surrogatepass")).digest()
        return text

    def _fill(self) -> None:
        """The next window; empty at the end of the texts or of the budget."""
        self._window, self._done = [], 0
        tokens = 0
        while self._left > 0 and tokens < _WINDOW * self._batch_tokens and (text := self._next()) is not None:
            # verbose: it is no news that a document is longer than the context.
            ids = self._tokenizer(text, verbose=False)["input_ids"][: min(self._longest, self._left)]
            if ids:
                self._window.append(ids)
                self._left -= len(ids)
                tokens += len(ids)


def _sorted_batches(documents: Sequence[list[int]], batch_tokens: int) -> list[list[list[int]]]:
    groups = batches_by_length([len(ids) for ids in documents], batch_tokens)
    return [[documents[index] for index in group] for group in groups]
