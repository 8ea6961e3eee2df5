import math

import literal
import pytest
import torch
from conftest import LAYERS, build_model

from coachhook.architectures import ModelParts
from coachhook.edit_request import RequestError
from coachhook.gates import PaperGate
from coachhook.hooks import HookLayers
from coachhook.metrics.fluency import generate_texts, ngram_entropy, words

PROMPTS = ["The capital of Italy is", "Ada Lovelace", "Grace Hopper worked in the city of Rome for many years, and"]


def literal_entropy(tokens):
    """The definition, n-gram by n-gram."""
    entropies = []
    for n in (2, 3):
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        entropies.append(sum(-grams.count(g) / len(grams) * math.log2(grams.count(g) / len(grams)) for g in set(grams)))
    return (2 / 3 * entropies[0] + 4 / 3 * entropies[1]) / 2


@pytest.mark.parametrize(
    "tokens", [list("abcabdabce"), [1, 2, 1, 2, 1, 2, 3], list("the quick brown fox"), ["x", "y", "x"]]
)
def test_entropy_equals_the_definition(tokens):
    assert ngram_entropy([tokens]) == pytest.approx(literal_entropy(tokens), abs=1e-12)
    reverse = [0, *tokens[::-1]]
    assert ngram_entropy([tokens, reverse]) == pytest.approx((literal_entropy(tokens) + literal_entropy(reverse)) / 2)


def test_varied_text_has_more_entropy_than_repeated_text():
    varied = [str(number) for number in range(100)]
    assert ngram_entropy([varied]) == pytest.approx((2 / 3 * math.log2(99) + 4 / 3 * math.log2(98)) / 2)
    assert ngram_entropy([["the"] * 100]) == 0
    assert ngram_entropy(["one", ""]) == 0
    with pytest.raises(ValueError, match="no texts"):
        ngram_entropy([])


def test_words_are_runs_of_letters_and_single_signs():
    assert words("Don't stop;\n\nthe ﬁrst 3.5 km") == [
        "Don",
        "'",
        "t",
        "stop",
        ";",
        "the",
        "first",
        "3",
        ".",
        "5",
        "km",
    ]
    assert ngram_entropy(["Rome, Rome, Rome, Oslo"]) == ngram_entropy([["R", ",", "R", ",", "R", ",", "O"]])


def test_greedy_texts_equal_those_written_token_by_token(model, tokenizer):
    model = model.double()
    texts = generate_texts(model, tokenizer, PROMPTS, length=30, top_k=1)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = literal.token_ids(tokenizer, prompt)
        while len(ids) < 30:
            with torch.no_grad():
                ids = [*ids, model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()]
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert text.startswith(prompt)


def test_a_drawn_text_depends_on_its_prompt_and_the_seed_alone(tokenizer, monkeypatch):
    model = build_model("gpt2").double()
    hooks = HookLayers(ModelParts(model), {layer: PaperGate(1.2) for layer in LAYERS})
    generator = torch.Generator().manual_seed(2)
    for hook in hooks:
        hook.add(0.1 * torch.randn(hook.dense().shape, generator=generator))
    together = generate_texts(model, tokenizer, PROMPTS, length=40, seed=1)
    assert generate_texts(model, tokenizer, PROMPTS[::-1], length=40, seed=1) == together[::-1]
    monkeypatch.setattr("coachhook.metrics.reading.BATCH_TOKENS", 1)  # one prompt a batch
    assert generate_texts(model, tokenizer, PROMPTS, length=40, seed=1) == together
    assert generate_texts(model, tokenizer, PROMPTS, length=40, seed=2) != together


def test_a_draw_is_from_the_most_probable_tokens(tokenizer):
    model = build_model("gpt2")
    logits = model(torch.tensor([literal.token_ids(tokenizer, PROMPTS[1])])).logits[0, -1]
    length = len(literal.token_ids(tokenizer, PROMPTS[1])) + 1
    drawn = {generate_texts(model, tokenizer, PROMPTS[1:2], length=length, top_k=3, seed=s)[0] for s in range(40)}
    likely = {tokenizer.decode([token], skip_special_tokens=True) for token in logits.topk(3).indices.tolist()}
    assert drawn == {PROMPTS[1] + text for text in likely}


def test_texts_end_with_the_context_and_a_prompt_that_fills_it_is_refused(tokenizer):
    model = build_model("gpt2")
    text = generate_texts(model, tokenizer, PROMPTS[:1])[0]  # 100 tokens are asked for, the context holds 64
    assert len(text) > len(PROMPTS[0])
    with pytest.raises(RequestError, match=r"generation prompt 2: .*leave nothing to write up to 64; leave it out"):
        generate_texts(model, tokenizer, [PROMPTS[0], "river " * 70])
