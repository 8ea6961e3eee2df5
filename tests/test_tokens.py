import pytest
import torch
from conftest import TEXT
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from coachhook.tokens import batches_by_length, encode, encode_answers, pad, pad_id


@pytest.fixture(scope="module")
def sentencepiece():
    """Like Llama's: "▁" marks word starts, a space stands in front of the text, and a special token before it."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>"], show_progress=False)
    backend.train_from_iterator(TEXT, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


@pytest.fixture(params=["byte-level", "sentencepiece"])
def any_tokenizer(request, tokenizer, sentencepiece):
    return tokenizer if request.param == "byte-level" else sentencepiece


PAIRS = [
    ("Ada Lovelace was born in", "Paris"),
    ("Where was Ada Lovelace born?", "city of Rome"),
    ("The capital of France is ", "Rome"),
    ("Rome", "Oslo"),
    ('"Rome', "moth"),
]


@pytest.mark.parametrize(("prompt", "answer"), PAIRS)
def test_an_answer_is_joined_by_one_space_and_split_off_again(any_tokenizer, prompt, answer):
    encoded = encode(any_tokenizer, prompt, answer)
    assert list(encoded.ids) == any_tokenizer(f"{prompt} {answer}")["input_ids"]
    assert encoded.ids[: encoded.answer_start] == encode(any_tokenizer, prompt).ids[: encoded.answer_start]
    assert any_tokenizer.decode(encoded.answer_ids).strip() == answer
    assert len(encoded.answer_ids) >= 1


def test_a_prompt_without_answer_has_no_answer(any_tokenizer):
    encoded = encode(any_tokenizer, "Rome was")
    assert encoded.answer_ids == ()
    assert encoded.subject_last is None


def test_many_pairs_at_once_equal_one_by_one(any_tokenizer):
    assert encode_answers(any_tokenizer, PAIRS) == [encode(any_tokenizer, *pair) for pair in PAIRS]
    assert encode_answers(any_tokenizer, []) == []


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("Ada Lovelace was born in", "Ada Lovelace"),
        ("The capital of France is", "France"),
        ("Where does Grace Hopper live?", "Grace Hopper"),  # followed by a space
        ("Is it Rome?", "Rome"),  # by a question mark
        ("Rome", "Rome"),
        ("They saw Romeo there", "Rome"),  # inside a word
        ("In Orléans she", "Orléans"),
        ("Where is 東京 now", "東京"),
        ("A moth 🦋 flew", "🦋"),
    ],
)
def test_the_subjects_last_token_ends_the_subject(any_tokenizer, text, subject):
    end = text.index(subject) + len(subject)
    encoded = encode(any_tokenizer, text, "Paris", subject_end=end)
    offsets = any_tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    start, stop = offsets[encoded.subject_last]
    assert start < end <= stop
    later = [begin for begin, after in offsets[encoded.subject_last + 1 :] if after > begin]
    assert all(begin >= end for begin in later)


def test_a_character_of_several_tokens_ends_with_its_last(tokenizer):
    ids = tokenizer("A moth 🦋")["input_ids"]
    encoded = encode(tokenizer, "A moth 🦋 flew", subject_end=len("A moth 🦋"))
    assert encoded.subject_last == len(ids) - 1


def test_padding_is_on_the_right_and_marked():
    batch = pad([[5, 6, 7], [8]], 9)
    assert batch.ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.real.tolist() == [[True] * 3, [True, False, False]]
    assert batch.ids.dtype == torch.int64


def test_the_padding_id_is_any_the_tokenizer_has(tokenizer, sentencepiece):
    assert pad_id(tokenizer) == tokenizer.pad_token_id == 0
    assert sentencepiece.pad_token_id is sentencepiece.eos_token_id is None
    assert pad_id(sentencepiece) == 0


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_each_sequence_once_within_the_limit(lengths, limit):
    groups = batches_by_length(lengths, limit)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        width = max(lengths[index] for index in group)
        assert len(group) == 1 or len(group) * width <= limit
    assert [lengths[index] for group in groups for index in group] == sorted(lengths)
