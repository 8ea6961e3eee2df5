import pytest
from conftest import TEXT

from coachhook.reading import Reader

LONG = " ".join(TEXT * 4)
TEXTS = [*TEXT, "", LONG, "Rome", *TEXT * 3]


def read(reader):
    return [ids for batch in reader.batches() for ids in batch]


def literally(tokenizer, texts, longest, budget):
    documents = []
    for text in texts:
        left = budget - sum(map(len, documents))
        ids = tokenizer(text)["input_ids"][:longest][:left]
        documents += [ids] if ids else []
    return documents


@pytest.mark.parametrize("budget", [1, 20, 150, 10_000])
@pytest.mark.parametrize("batch_tokens", [1, 10, 500])
def test_every_document_is_read_once_cut_at_its_length_and_at_the_budget(tokenizer, budget, batch_tokens):
    reader = Reader(tokenizer, TEXTS, 30, budget, batch_tokens)
    documents = read(reader)
    assert sorted(documents) == sorted(literally(tokenizer, TEXTS, 30, budget))
    assert sum(map(len, documents)) <= budget


def test_batches_hold_as_many_padded_tokens_as_they_may(tokenizer):
    for batch in Reader(tokenizer, TEXTS, 64, 10_000, 50).batches():
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= 50


def test_no_more_is_read_than_is_counted(tokenizer):
    given = []

    def texts():
        for text in TEXTS * 100:
            given.append(text)
            yield text

    reader = Reader(tokenizer, texts(), 64, 100, 5)
    read(reader)
    assert given == TEXTS[: reader.documents]
    assert sum(min(64, len(tokenizer(text)["input_ids"])) for text in given) < 100 + 64


@pytest.mark.parametrize("batch_tokens", [3, 40])
def test_reading_goes_on_from_every_place(tokenizer, batch_tokens):
    def new(texts=TEXTS):
        return Reader(tokenizer, texts, 30, 260, batch_tokens)

    whole = list(new().batches())
    for place in range(len(whole) + 1):
        first = new()
        batches = first.batches()
        begun = [next(batches) for _ in range(place)]
        tensors, info = first.state()
        second = new(iter(TEXTS))
        assert second.restore(tensors.__getitem__, info)
        assert begun + list(second.batches()) == whole


def test_other_texts_are_noticed_and_read_from_the_start(tokenizer):
    first = Reader(tokenizer, TEXTS, 30, 260, 40)
    next(first.batches())
    tensors, info = first.state()
    assert info["documents"] > 2
    for texts in (["Other.", *TEXTS], TEXTS[:2], [*TEXTS[:2], "Other."] * 10):
        second = Reader(tokenizer, texts, 30, 260, 40)
        assert not second.restore(tensors.__getitem__, info)
        assert read(second) == read(Reader(tokenizer, texts, 30, 260, 40))
