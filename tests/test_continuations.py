import pytest
import torch
from conftest import build_model
from test_editors import make_editor

from coachhook.continuations import continuations
from coachhook.edit_request import RequestError


def literal(model, tokenizer, prompt, count):
    ids = list(tokenizer(prompt)["input_ids"])
    for _ in range(count):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_texts_are_the_most_probable_tokens_one_by_one_also_behind_the_papers_gate(
    family, tokenizer, covariances, requests
):
    editor = make_editor(build_model(family), tokenizer, covariances, "coachhook", alpha=1.0, target_lr=0.5)
    prompts = [request.text for request in requests]
    with editor.disabled():
        base = list(continuations(editor.model, tokenizer, prompts, 9))
    editor.edit(requests)
    edited = list(continuations(editor.model, tokenizer, prompts, 9))
    assert edited != base
    for prompt, text in zip(prompts, edited, strict=True):
        assert prompt + text == literal(editor.model, tokenizer, prompt, 9)


def test_the_context_ends_a_text_and_a_prompt_that_fills_it_is_refused(tokenizer):
    model = build_model("gpt2")
    model.generation_config.eos_token_id = None
    long = "Ada " * 50
    count = len(tokenizer(long)["input_ids"])
    assert count < 64
    (text,) = continuations(model, tokenizer, [long], 500)
    assert len(tokenizer(long + text)["input_ids"]) >= 60
    with pytest.raises(RequestError, match=r"prompt 2: \d+ tokens; give between 1 and 63"):
        list(continuations(model, tokenizer, ["Ada", long * 2]))
    with pytest.raises(RequestError, match="prompt 1: 0 tokens"):
        list(continuations(model, tokenizer, [""]))
