"""Base models that are not trained here: fetched from the hub at a pinned revision, or built small from their config.

Both end as an ordinary Hugging Face directory in safetensors, whose config.json says in which dtype it is to be
loaded, and a `source.json` with the checksum of every file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coachhook.edit_request import EditRequest
from coachhook.errors import CoachHookError
from coachhook.whole_files import whole_folder, write_text

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_OLD_WEIGHTS = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?")
_SETTINGS = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt|"
    r"tokenizer\.model|chat_template\.jinja"
)


class HubModelError(CoachHookError, RuntimeError):
    """A model that cannot be fetched, or is not what the configuration says; one line with what to do."""


def fetch_model(
    hub: str, revision: str, out_dir: str | os.PathLike, *, dtype: str, config: Mapping[str, Any] | None = None
) -> None:
    """Fetch a model into `out_dir`; killed, it goes on with the files that are missing.

    Weights that the revision only has in PyTorch's own format are read without running any code of theirs
    (`weights_only`) and written as safetensors, in `dtype`.

    Arguments:
        hub: id on the hub, such as "openai-community/gpt2-xl".
        revision: commit, tag or branch; what it was then stands in source.json as `commit`.
        dtype: the dtype that config.json shall name, so that everybody loads the model in it.
        config: what config.json must say; checked before any weights are fetched.

    Raises:
        HubModelError: the hub cannot be reached or refuses, a checksum or the config differs, or there are no weights.
    """
    out = Path(out_dir)
    info = _ask_hub(hub, revision)
    names = [sibling.rfilename for sibling in info.siblings]
    weights = [name for name in names if _WEIGHTS.fullmatch(name)]
    old = [] if weights else [name for name in names if _OLD_WEIGHTS.fullmatch(name)]
    if not weights and not old:
        raise HubModelError(f"{hub} at {revision} holds no model*.safetensors; choose another revision")
    settings = [name for name in names if _SETTINGS.fullmatch(name)]
    _download(hub, info.sha, settings, out)
    _check_config(out, config or {}, f"{hub} at {revision}")
    logger.info("fetching %s at %s: %s", hub, info.sha, ", ".join(weights or old))
    _download(hub, info.sha, weights or old, out)
    files = _check_files(out, info, [*settings, *weights, *old])
    _write_dtype(out, dtype)
    if old:
        files |= _convert(out, old)
    write_source(out, {"hub": hub, "revision": revision, "commit": info.sha, "dtype": dtype, "files": files})


def build_model(
    config: Mapping[str, Any], texts: Sequence[str], out_dir: str | os.PathLike, *, dtype: str, seed: int
) -> None:
    """Write a model of random weights, with a tokenizer trained on `texts`, in the place of one from the hub.

    config: as in a config.json: `model_type` and sizes; the vocabulary is the tokenizer's. The texts are written
    beside it as text.txt.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from coachhook.base_model import TrainingConfig, train_tokenizer

    out, documents = Path(out_dir), [" ".join(text.split()) for text in texts]
    length = next(config[name] for name in ("n_positions", "max_position_embeddings") if name in config)
    tokenizer = train_tokenizer(documents, TrainingConfig(vocabulary=600, context_length=length))
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**{**config, "vocab_size": len(tokenizer), **special}), dtype=getattr(torch, dtype)
        )
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "text.txt").write_text("".join(f"{document}\n" for document in documents), encoding="utf-8")
    files = {path.name: _describe(path) for path in sorted(out.iterdir()) if path.name != "source.json"}
    write_source(out, {"config": dict(config), "dtype": dtype, "seed": seed, "files": files})


def request_texts(requests: Iterable[EditRequest]) -> list[str]:
    """Every prompt of the requests with every answer that it is to get or to keep."""
    texts = []
    for request in requests:
        answers = filter(None, (request.target_new, request.target_true))
        texts += [f"{text} {answer}." for answer in answers for text in (request.text, *request.paraphrase_texts)]
        texts += [f"{probe.prompt} {probe.answer}." for probe in (*request.locality, *request.portability)]
    return texts


def write_source(out: Path, source: Mapping[str, Any]) -> None:
    """Write source.json, the last file of a model's directory: where it is, the model is complete."""
    write_text(out / "source.json", json.dumps(source, indent=1) + "\n")


def _ask_hub(hub: str, revision: str) -> ModelInfo:
    from huggingface_hub import HfApi

    with _one_line(f"{hub} at {revision}"):
        return HfApi().model_info(hub, revision=revision, files_metadata=True)


def _download(hub: str, commit: str, names: Sequence[str], out: Path) -> None:
    from huggingface_hub import snapshot_download

    with _one_line(f"{hub} at {commit}"):
        snapshot_download(hub, revision=commit, allow_patterns=list(names), local_dir=out)


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Say in one line why the hub gave nothing."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except GatedRepoError:
        raise HubModelError(f"{what}: accept its licence on https://huggingface.co, then set HF_TOKEN") from None
    except OfflineModeIsEnabled:
        raise HubModelError(f"{what} cannot be fetched offline; unset HF_HUB_OFFLINE") from None
    except (HTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubModelError(f"{what} cannot be fetched ({reason}); correct it, or run this again") from None


def _check_config(out: Path, expected: Mapping[str, Any], what: str) -> None:
    content = json.loads((out / "config.json").read_text(encoding="utf-8"))
    for name, value in expected.items():
        if content.get(name) != value:
            raise HubModelError(f"config: {name} is {value!r}, but {what} has {content.get(name)!r}; correct it")


def _check_files(out: Path, info: ModelInfo, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Size and checksum of every fetched file; those that the hub keeps a checksum of must have it."""
    known = {sibling.rfilename: sibling.lfs.sha256 for sibling in info.siblings if sibling.lfs}
    found = {}
    for name in names:
        found[name] = _describe(out / name)
        if name in known and found[name]["sha256"] != known[name]:
            (out / name).unlink()
            raise HubModelError(f"{out / name}: its checksum is not the hub's; it was removed, run this again")
    return found


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write_dtype(out: Path, dtype: str) -> None:
    content = json.loads((out / "config.json").read_text(encoding="utf-8"))
    content.pop("torch_dtype", None)  # its older name
    write_text(out / "config.json", json.dumps(content | {"dtype": dtype}, indent=2) + "\n")


def _convert(out: Path, old: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Write the weights as safetensors, and remove the files they came in."""
    from transformers import AutoModelForCausalLM

    with whole_folder(out) as folder:
        AutoModelForCausalLM.from_pretrained(out, weights_only=True).save_pretrained(folder)
    for name in old:
        (out / name).unlink()
    return {path.name: _describe(path) for path in sorted(out.iterdir()) if _WEIGHTS.fullmatch(path.name)}
