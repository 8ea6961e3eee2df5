"""Models from the hub: the real client of huggingface_hub against a small server that speaks the hub's protocol."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from coachhook.hub_models import build_model, request_texts

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCH = """
import sys
from coachhook.hub_models import HubModelError, fetch_model
try:
    fetch_model("some/model", sys.argv[1], sys.argv[2], dtype=sys.argv[3], config={"n_layer": int(sys.argv[4])})
except HubModelError as error:
    sys.exit(f"REFUSED {error}")
"""


class Hub:
    """A server of one model's files; `asked` are the paths it was asked for."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.asked, self.sha256 = files, [], {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path = request.path.partition("?")[0]
        if path.startswith("/api/models/some/model/revision/"):
            self._send(request, json.dumps(self._info()).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith("/api/models/some/model/tree/"):
            self._send(request, json.dumps(self._tree()).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(f"/some/model/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            self.asked += [name] if body else []
            headers = {"ETag": f'"{_sha256(self.files[name])}"', "X-Repo-Commit": COMMIT}
            self._send(request, self.files[name], headers, body)
        else:
            self._send(request, b"{}", {"X-Error-Code": "RepoNotFound"}, body, status=404)

    def _send(self, request, content: bytes, headers: dict[str, str], body: bool, status: int = 200) -> None:
        request.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(content)

    def _lfs(self, name: str) -> dict:
        sha256 = self.sha256.get(name, _sha256(self.files[name]))
        return {"oid": sha256, "sha256": sha256, "size": len(self.files[name]), "pointerSize": 134}

    def _info(self) -> dict:
        siblings = [{"rfilename": name, "size": len(self.files[name])} for name in self.files]
        for sibling in siblings:
            if not sibling["rfilename"].endswith("json"):
                sibling["lfs"] = self._lfs(sibling["rfilename"])
        return {"id": "some/model", "modelId": "some/model", "sha": COMMIT, "siblings": siblings, "tags": []}

    def _tree(self) -> list[dict]:
        rows = [{"type": "file", "path": name, "size": len(self.files[name]), "oid": "0" * 40} for name in self.files]
        return [row if row["path"].endswith("json") else row | {"lfs": self._lfs(row["path"])} for row in rows]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=32, vocab_size=len(tokenizer))
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(saved):
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    server = Hub(files | {"README.md": b"# A model", "rust_model.ot": b"other weights"})
    yield server
    server.close()


def _fetch(hub: Hub, out: Path, dtype="float16", layers=2, revision="main", **environment) -> str:
    """Run the fetch in a process of its own, as a rule does; what it printed."""
    settings = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(out.parent / "home"), **environment}
    arguments = [sys.executable, "-W", "ignore", "-c", FETCH, revision, str(out), dtype, str(layers)]
    run = subprocess.run(arguments, env=os.environ | settings, capture_output=True, text=True)
    return run.stderr if run.returncode else ""


def test_a_fetched_model_is_loaded_in_the_dtype_asked_for_and_nothing_else_is_fetched(hub, saved, tmp_path):
    out = tmp_path / "model"
    assert _fetch(hub, out) == ""
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float16
    theirs = AutoModelForCausalLM.from_pretrained(saved)
    assert all(torch.equal(a, b.half()) for a, b in zip(model.parameters(), theirs.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(out)("Ada")["input_ids"]
    assert not {"README.md", "rust_model.ot"} & set(hub.asked)
    source = json.loads((out / "source.json").read_text())
    assert (source["hub"], source["revision"], source["commit"]) == ("some/model", "main", COMMIT)
    assert source["files"]["model.safetensors"]["sha256"] == _sha256(hub.files["model.safetensors"])


def test_a_second_fetch_takes_the_weights_that_are_there(hub, tmp_path):
    assert _fetch(hub, tmp_path / "model") == ""
    hub.asked.clear()
    assert _fetch(hub, tmp_path / "model") == ""
    assert "model.safetensors" not in hub.asked


def test_weights_in_pytorch_s_format_become_safetensors(hub, saved, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(saved)
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    del hub.files["model.safetensors"]
    hub.files["pytorch_model.bin"] = (tmp_path / "weights.bin").read_bytes()
    out = tmp_path / "model"
    assert _fetch(hub, out, dtype="float32") == ""
    assert not list(out.glob("*.bin"))
    fetched = AutoModelForCausalLM.from_pretrained(out)
    assert all(torch.equal(a, b) for a, b in zip(fetched.parameters(), model.parameters(), strict=True))
    assert "model.safetensors" in json.loads((out / "source.json").read_text())["files"]


def test_another_config_is_refused_before_the_weights_are_fetched(hub, tmp_path):
    message = _fetch(hub, tmp_path / "model", layers=3)
    assert "REFUSED config: n_layer is 3, but some/model at main has 2" in message
    assert "model.safetensors" not in hub.asked


def test_another_checksum_is_refused_and_the_file_removed(hub, tmp_path):
    hub.sha256["model.safetensors"] = "f" * 64
    message = _fetch(hub, tmp_path / "model")
    assert "REFUSED" in message
    assert not (tmp_path / "model" / "model.safetensors").exists()
    assert not (tmp_path / "model" / "source.json").exists()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "offline; unset HF_HUB_OFFLINE"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "some/model at main cannot be fetched"),
    ],
)
def test_no_hub_is_one_line(hub, tmp_path, environment, words):
    message = _fetch(hub, tmp_path / "model", **environment)
    assert words in message
    assert message.startswith("REFUSED")
    assert len(message.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_layer": 4, "n_embd": 16, "n_head": 2, "n_positions": 64},
        {"model_type": "gptj", "n_layer": 4, "n_embd": 16, "n_head": 2, "n_positions": 64, "rotary_dim": 4},
        {
            "model_type": "qwen2",
            "num_hidden_layers": 4,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
        },
    ],
    ids=lambda config: config["model_type"],
)
def test_a_model_built_from_its_config_is_an_ordinary_one_and_always_the_same(config, requests, tmp_path):
    for folder in ("one", "same"):
        build_model(config, request_texts(requests), tmp_path / folder, dtype="bfloat16", seed=3)
    one, same = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("one", "same"))
    assert one == same
    model, tokenizer = (kind.from_pretrained(tmp_path / "one") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.model_type == config["model_type"]
    assert AutoConfig.from_pretrained(tmp_path / "one").num_hidden_layers == 4
    assert model.dtype == torch.bfloat16
    ids = tokenizer(requests[0].text, return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] == ids.shape[1] + 3
    assert json.loads((tmp_path / "one" / "source.json").read_text())["files"]["model.safetensors"]["bytes"] == len(one)
