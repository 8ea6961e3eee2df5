"""Fluency: how varied the text is that a model writes; a model that broke repeats itself.

After ROME (Meng et al., NeurIPS 2022, section 3.4, "fluency"; kmeng01/memit, experiments/py/eval_utils_counterfact.py
and util/generate.py): texts of 100 tokens, each token drawn from the 5 most probable.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from math import log2
from statistics import fmean

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.edit_request import RequestError
from coachhook.metrics.reading import next_logits
from coachhook.tokens import pad_id

WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # of the entropies of bigrams and trigrams


def ngram_entropy(texts: Sequence[str | Sequence[Hashable]]) -> float:
    """Mean over texts of (2/3 H₂ + 4/3 H₃) / 2, where Hₙ is the entropy of the text's n-grams in bits.

    ROME's tables show it × 100.
    A text is split into runs of word characters and single other signs, after NFKD. ROME takes NLTK's tokens, which
    differ in contractions ("don't" is two tokens there, three here), numbers ("3.5"), hyphens and quotes: the
    values are close to published ones, not the same. A text too short for an n-gram has Hₙ = 0.

    Arguments:
        texts: each a string, or its words or token ids.

    Raises:
        ValueError: there are none.
    """
    if not texts:
        raise ValueError("there are no texts; give at least one")
    return fmean(_entropy(words(text) if isinstance(text, str) else text) for text in texts)


def words(text: str) -> list[str]:
    """Runs of word characters and single other signs, after NFKD."""
    return re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKD", text))


def _entropy(tokens: Sequence[Hashable]) -> float:
    total = 0.0
    for n, weight in WEIGHTS.items():
        counts = Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
        size = counts.total()
        total -= weight * sum(count / size * log2(count / size) for count in counts.values())
    return total / len(WEIGHTS)


@torch.no_grad()
def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    length: int = 100,
    top_k: int = 5,
    seed: int = 0,
) -> list[str]:
    """Each prompt continued to `length` tokens, prompt included, or to the end of the model's context.

    Each token is drawn from the `top_k` most probable (1: greedily), from a generator of the prompt's own, so that
    neither the other prompts nor the batch size change a text. As in the protocol "generate" there is no cache:
    a gate sees all that stands before. The end-of-text token does not end a text and is left out.

    Raises:
        RequestError: a prompt leaves no room.
    """
    parts = ModelParts(model)
    end = min(length, parts.context_length)
    texts = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    for place, ids in enumerate(texts, 1):
        if len(ids) >= end:
            problem = f"{len(ids)} tokens leave nothing to write up to {end}; leave it out or raise the length"
            raise RequestError(problem, f"generation prompt {place}")
    draws = [_generator(seed, prompt) for prompt in prompts]
    while going := [index for index, ids in enumerate(texts) if len(ids) < end]:
        for group, logits in next_logits(parts, [texts[index] for index in going], pad_id(tokenizer)):
            best = logits.double().topk(top_k)
            for place, values, tokens in zip(group, best.values.cpu(), best.indices.tolist(), strict=True):
                index = going[place]
                choice = torch.multinomial(values.softmax(-1), 1, generator=draws[index])
                texts[index].append(tokens[choice.item()])
    return tokenizer.batch_decode(texts, skip_special_tokens=True)


def _generator(seed: int, prompt: str) -> torch.Generator:
    return torch.Generator().manual_seed(random.Random(f"{seed} {prompt}").getrandbits(63))
