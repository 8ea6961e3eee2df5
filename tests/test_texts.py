import gzip
import json

import pyarrow as pa
import pytest
from conftest import LAYERS, TEXT, build_model
from pyarrow import parquet

from coachhook.covariance import compute_covariance
from coachhook.texts import FileTexts, HubTexts, TextError, open_texts

COMMIT = "b04c8d1ceb2f5cd4588862100d08de323dccfbaa"
DOCUMENTS = ["One.", "Zwei Zeilen\nin einem Text: é, 東京", "", "Four"]


@pytest.fixture
def files(tmp_path):
    """The same documents in every format (in .txt files a document is one line)."""
    lines = "\n".join(document.replace("\n", " ") for document in DOCUMENTS) + "\n"
    records = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(DOCUMENTS))
    (tmp_path / "a.txt").write_text(lines, encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.jsonl").write_text(records, encoding="utf-8")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(records.encode()))
    parquet.write_table(pa.table({"id": range(4), "text": DOCUMENTS}), tmp_path / "e.parquet", row_group_size=3)
    return tmp_path


@pytest.mark.parametrize("name", ["a.txt", "b.txt.gz", "c.jsonl", "d.jsonl.gz", "e.parquet"])
def test_every_format_gives_its_documents_as_often_as_asked(files, name):
    texts = open_texts([files / name])
    expected = [text.replace("\n", " ") for text in DOCUMENTS] if "txt" in name else DOCUMENTS
    assert list(texts) == expected
    assert list(texts) == expected


def test_a_folder_is_read_file_by_file_in_the_order_of_names(files):
    (files / "README.md").write_text("no text")
    (files / "a.txt.bak").write_text("no text")
    (files / "deeper").mkdir()
    (files / "deeper" / "z.txt").write_text("deep\n")
    names = [path.name for path in open_texts([files]).paths]
    assert names == ["a.txt", "b.txt.gz", "c.jsonl", "d.jsonl.gz", "z.txt", "e.parquet"]
    assert len(list(open_texts([files]))) == 5 * 4 + 1
    several = open_texts([files / "c.jsonl", files / "deeper", files / "a.txt"])
    assert [path.name for path in several.paths] == ["c.jsonl", "z.txt", "a.txt"]


def test_a_file_of_another_name_is_lines_of_text(tmp_path):
    (tmp_path / "corpus").write_text("one\ntwo")
    assert list(open_texts([tmp_path / "corpus"])) == ["one", "two"]


def test_the_field_can_be_named_and_null_is_an_empty_document(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n\n{"body": null}\n')
    parquet.write_table(pa.table({"body": ["y", None]}), tmp_path / "b.parquet")
    assert list(open_texts([tmp_path], field="body")) == ["x", "", "y", ""]


def refused(words, texts):
    with pytest.raises(TextError, match=words) as caught:
        list(texts() if callable(texts) else texts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text"', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"title": "x", "id": 1}\n', "line 2: has no field 'text', but title, id"),
        ("a.jsonl", b'["x"]\n', "line 1: has no field"),
        ("a.jsonl", b'{"text": 5}\n', "line 1: text is int, not text"),
        ("a.txt", b"caf\xe9\n", "a.txt: cannot be read"),
        ("a.txt.gz", b"no gzip", "a.txt.gz: cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9999)[:-40], "a.jsonl.gz: cannot be read"),
        ("a.parquet", b"PAR1 nonsense PAR1", "a.parquet: cannot be read"),
        ("a.parquet", b"", "a.parquet: cannot be read"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    refused(words, open_texts([tmp_path / name]))


def test_a_parquet_file_without_the_field_names_those_it_has(tmp_path):
    parquet.write_table(pa.table({"title": ["x"], "body": ["y"]}), tmp_path / "a.parquet")
    refused("has no field 'text', but title, body; name it with --texts-field", open_texts([tmp_path]))


def test_what_is_not_there_is_refused(tmp_path):
    refused("none.txt is not a file", lambda: open_texts([tmp_path / "none.txt"]))
    refused("data/none.txt is not a file", lambda: open_texts(["data/none.txt"], revision=COMMIT))
    refused("nowhere is not a file", lambda: open_texts(["nowhere"], revision=COMMIT))
    (tmp_path / "empty").mkdir()
    refused("empty holds no .txt", lambda: open_texts([tmp_path / "empty"]))


def test_the_hub_needs_a_revision():
    refused("needs its revision", lambda: open_texts(["wikimedia/wikipedia"], config="20231101.en"))
    texts = open_texts(["wikimedia/wikipedia"], config="20231101.en", revision=COMMIT)
    assert texts == HubTexts("wikimedia/wikipedia", "20231101.en", COMMIT, "train", "text")


@pytest.fixture
def data_set(tmp_path):
    """A data set laid out as on the hub, two configurations of several parquet files."""
    for name, prefix in (("20231101.en", "en"), ("20231101.de", "de")):
        (tmp_path / name).mkdir()
        for part in range(2):
            texts = [f"{prefix} document {part}.{row}" for row in range(5)]
            table = pa.table({"id": [str(row) for row in range(5)], "text": texts})
            parquet.write_table(table, tmp_path / name / f"train-0000{part}-of-00002.parquet")
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n"
        for name in ("20231101.en", "20231101.de")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return tmp_path


def test_a_data_set_is_streamed_as_often_as_asked(data_set):
    texts = HubTexts(str(data_set), "20231101.en", None)
    expected = [f"en document {part}.{row}" for part in range(2) for row in range(5)]
    assert list(texts) == expected
    assert list(texts) == expected


def test_a_streamed_covariance_is_that_of_the_same_documents(data_set, tokenizer):
    streamed = compute_covariance(build_model("gpt2"), tokenizer, HubTexts(str(data_set), "20231101.de", None), LAYERS)
    local = compute_covariance(
        build_model("gpt2"), tokenizer, FileTexts((*sorted((data_set / "20231101.de").iterdir()),)), LAYERS
    )
    assert streamed.tokens == local.tokens
    assert all((streamed.matrices[layer] == local.matrices[layer]).all() for layer in LAYERS)


def test_what_the_hub_does_not_give_is_one_line(data_set):
    refused("cannot be read from the hub", HubTexts("wikimedia/wikipedia", "20231101.en", COMMIT))  # offline
    refused("cannot be read from the hub", HubTexts(str(data_set), "20231101.fr", None))
    refused("cannot be read from the hub", HubTexts(str(data_set), "20231101.en", None, split="test"))
    refused("record 1: has no field 'body', but id, text", HubTexts(str(data_set), "20231101.en", None, field="body"))


def test_a_stream_that_breaks_says_how_far_it_came(data_set):
    path = data_set / "20231101.en" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:100])
    refused("cannot be read from the hub", HubTexts(str(data_set), "20231101.en", None))


def test_text_line_endings_are_not_part_of_a_document(tmp_path):
    (tmp_path / "a.txt").write_bytes("\r\n".join(TEXT).encode())
    assert list(open_texts([tmp_path / "a.txt"])) == TEXT
