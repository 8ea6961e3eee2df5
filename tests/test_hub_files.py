import hashlib
import json

import httpx2
import pytest
from huggingface_hub import errors
from request_records import FLAT, OWN

from coachhook import hub_files
from coachhook.hub_files import HubFileError, fetch_requests
from coachhook.requests import read_requests

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILE = "benchmark/ZsRE/ZsRE-test-all.json"
CONTENT = json.dumps([FLAT, OWN]).encode()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path):
    """A cache as the hub's client lays it out, with one file; tests run offline."""
    folder = tmp_path / "datasets--zjunlp--KnowEdit"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "blob").write_bytes(CONTENT)
    pointer = folder / "snapshots" / REVISION / FILE
    pointer.parent.mkdir(parents=True)
    pointer.symlink_to(folder / "blobs" / "blob")
    return tmp_path


def test_a_cached_file_is_checked_and_read(cache):
    path = fetch_requests("zjunlp/KnowEdit", FILE, REVISION, SHA256, cache_dir=cache)
    assert path.read_bytes() == CONTENT
    assert [request.case_id for request in read_requests(path)] == [7, None]


def refused(words, cache, hub_id="zjunlp/KnowEdit", file=FILE, revision=REVISION, sha256=SHA256):
    with pytest.raises(HubFileError) as error:
        fetch_requests(hub_id, file, revision, sha256, cache_dir=cache)
    assert str(error.value).startswith(f"{hub_id}/{file} at ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_changed_file_is_refused(cache):
    other = hashlib.sha256(CONTENT + b" ").hexdigest()
    refused(f"its sha256 is {SHA256}, not {other}; delete ", cache, sha256=other)
    (cache / "datasets--zjunlp--KnowEdit" / "blobs" / "blob").write_bytes(CONTENT[:-1])
    refused(f"not {SHA256}; delete ", cache)


def test_what_is_not_cached_is_refused_offline(cache):
    refused("not in the cache, and the hub cannot be reached", cache, file="other.json")
    refused("not in the cache, and the hub cannot be reached", cache, revision="f" * 40)
    refused("it cannot be fetched", cache, hub_id="a/b/c")


@pytest.mark.parametrize(
    ("pin", "words"),
    [
        ({"revision": "main"}, "revision: 'main' is not 40 hexadecimal digits"),
        ({"revision": REVISION[:7]}, "is not 40 hexadecimal digits"),
        ({"sha256": SHA256.upper()}, "is not 64 hexadecimal digits"),
        ({"sha256": ""}, "sha256: '' is not 64"),
    ],
)
def test_pins_are_whole_hashes(cache, pin, words):
    refused(words, cache, **pin)


RESPONSE = httpx2.Response(404, request=httpx2.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.GatedRepoError("no", response=RESPONSE), "accept its terms"),
        (errors.RepositoryNotFoundError("no", response=RESPONSE), "no such data set"),
        (errors.RevisionNotFoundError("no", response=RESPONSE), "no such revision"),
        (errors.RemoteEntryNotFoundError("no", response=RESPONSE), "no such file at this revision"),
        (errors.LocalEntryNotFoundError("no"), "go online"),
        (errors.HfHubHTTPError("500\nServer", response=RESPONSE), "it cannot be fetched (500 Server); try again"),
        (httpx2.ReadTimeout("too slow"), "it cannot be fetched (too slow)"),
        (OSError("No space left"), "it cannot be fetched (No space left)"),
    ],
)
def test_what_the_hub_says_is_one_line(monkeypatch, tmp_path, error, words):
    def download(hub_id, file, *, repo_type, revision, cache_dir):
        assert (repo_type, revision, cache_dir) == ("dataset", REVISION, tmp_path)
        raise error

    monkeypatch.setattr(hub_files, "hf_hub_download", download)
    refused(words, tmp_path)
