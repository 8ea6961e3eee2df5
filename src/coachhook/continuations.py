"""What a model writes behind a prompt, word for word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from coachhook.architectures import ModelParts
from coachhook.edit_request import RequestError
from coachhook.tokens import pad_id


@torch.no_grad()
def continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_tokens: int = 30
) -> Iterator[str]:
    """Greedily, the text behind each prompt: up to `max_tokens` tokens, the end of the text or of the context.

    Without a cache, so that every gate sees all that stands before, also the paper's, which is silent with one.

    Raises:
        RequestError: a prompt is empty, or fills the context.
    """
    context = ModelParts(model).context_length
    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    for number, row in enumerate(rows, 1):
        if not 0 < len(row) < context:
            raise RequestError(f"{len(row)} tokens; give between 1 and {context - 1}", f"prompt {number}")
    for row in rows:
        settings = GenerationConfig(
            max_new_tokens=min(max_tokens, context - len(row)),
            do_sample=False,
            use_cache=False,
            eos_token_id=model.generation_config.eos_token_id,
            pad_token_id=pad_id(tokenizer),
        )
        ids = torch.tensor([row], device=model.device)
        written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0].tolist()
        # Decoded with the prompt, as some tokenizers drop the space that a text begins with.
        text, start = (tokenizer.decode(part, skip_special_tokens=True) for part in (written, row))
        yield text.removeprefix(start)
