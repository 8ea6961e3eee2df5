"""Contexts: short prefixes in front of a prompt, so that keys and targets do not depend on one position."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coachhook.devices import execution_device
from coachhook.tokens import pad_id


@torch.no_grad()
def generate_prefixes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, length: int, seed: int
) -> tuple[str, ...]:
    """Sample `count` texts of at most `length` tokens from the model, each followed by ". " (MEMIT, appendix B).

    Sampling starts from the tokenizer's first special token (end of text for GPT-2) and leaves torch's random
    state as it was.
    """
    if count == 0:
        return ()
    start = next(i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if i is not None)
    device = execution_device(model.get_input_embeddings())
    inputs = torch.full((count, 1), start, device=device)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        outputs = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=True,
            top_k=50,
            min_new_tokens=length,
            max_new_tokens=length,
            pad_token_id=pad_id(tokenizer),
        )
    texts = tokenizer.batch_decode(outputs[:, 1:], skip_special_tokens=True)
    return tuple(" ".join(text.split()).rstrip(" .,;:") + ". " for text in texts)
