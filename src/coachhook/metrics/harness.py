"""The model as lm-eval sees it. Needs lm-eval, so it is imported only where ability is measured."""

from __future__ import annotations

import torch
from jaxtyping import Float
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from coachhook.tokens import pad


class MaskedModel(HFLM):
    """An ordinary Hugging Face model whose every call has an attention mask.

    lm-eval's own pads texts on the right and gives no mask to score them. To whatever looks at a whole text, such as
    the paper's gate, padding is text then, and a score depends on the batch size.
    """

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, override_bs: int | None = None):
        """Log-likelihood in nats of each (key, context, continuation), and whether it is what greedy decoding says.

        What several continuations share is computed once. A text too long for the context loses its beginning.
        """
        asked: dict[tuple[int, ...], list[int]] = {}
        for place, (_, context, continuation) in enumerate(requests):
            text = (*context, *continuation)[-(self.max_length + 1) : -1]  # nothing is read behind the last token
            asked.setdefault(text, []).append(place)
        texts = sorted(asked, key=len, reverse=True)  # what does not fit in memory does not fit at once
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        size = override_bs or self.batch_size
        for start in tqdm(range(0, len(texts), size), desc="log-likelihoods", disable=disable_tqdm):
            group = texts[start : start + size]
            batch = pad(group, self.tokenizer.pad_token_id, self.device)
            logits = self.model(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False).logits
            for text, of_text in zip(group, logits, strict=True):
                for place in asked[text]:
                    answers[place] = _likelihood(of_text[: len(text)], requests[place][2])
        return answers


def _likelihood(logits: Float[Tensor, "time vocabulary"], continuation: list[int]) -> tuple[float, bool]:
    last = logits[-len(continuation) :].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    wanted = torch.tensor(continuation, device=last.device)
    greedy = torch.equal(last.argmax(-1), wanted)
    return last.gather(1, wanted[:, None]).sum().item(), greedy
