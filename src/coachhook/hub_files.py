"""Request files from the Hugging Face hub: pinned to a revision, held to a checksum, kept in the hub's cache."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

# The file as it is, by the call that `datasets` itself fetches files with: loading it with `datasets` would force one
# schema on all its records, which fails for KnowEdit, whose answers are texts, lists and lists of lists.
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from coachhook.errors import CoachHookError

_PROBLEMS = (  # the first that fits; subclasses come before their bases
    (LocalEntryNotFoundError, "not in the cache, and the hub cannot be reached; go online, or use a copy as a local file"),
    (GatedRepoError, "the data set is gated; accept its terms on the hub, and log in with `hf auth login`"),
    (RepositoryNotFoundError, "the hub has no such data set, or it is private; check its id, or log in"),
    (RevisionNotFoundError, "the data set has no such revision; copy a commit hash from its history on the hub"),
    (EntryNotFoundError, "the data set has no such file at this revision; check its path"),
)


class HubFileError(CoachHookError):
    """A file cannot be fetched, or is not the one that was asked for: one line with data set, file, what to do."""


def fetch_requests(
    hub_id: str, file: str, revision: str, sha256: str, cache_dir: str | os.PathLike | None = None
) -> Path:
    """The local path of one file of a hub data set, downloaded unless the cache has it.

    revision: a commit hash (40 hexadecimal digits), as a branch or tag may move. sha256: of the file's bytes, in
    hexadecimal; the file is checked each time. cache_dir: the hub's own by default.

    Raises HubFileError: offline, no such data set, revision or file, or another checksum.
    """
    where = f"{hub_id}/{file} at {revision[:8]}"
    for name, value, digits in (("revision", revision, 40), ("sha256", sha256, 64)):
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
            raise HubFileError(f"{where}: {name}: {value!r} is not {digits} hexadecimal digits; give the full hash")
    try:
        path = Path(hf_hub_download(hub_id, file, repo_type="dataset", revision=revision, cache_dir=cache_dir))
    except (EntryNotFoundError, HFValidationError, OSError) as error:
        known = (problem for kind, problem in _PROBLEMS if isinstance(error, kind))
        problem = next(known, f"it cannot be fetched ({' '.join(str(error).split())}); try again")
        raise HubFileError(f"{where}: {problem}") from None
    with open(path, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        problem = f"its sha256 is {found}, not {sha256}; delete {path.resolve()} and fetch it again, or correct sha256"
        raise HubFileError(f"{where}: {problem}")
    return path
