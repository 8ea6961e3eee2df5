"""Versions of what computes."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from safetensors import safe_open

from coachhook import __version__

PACKAGES = (  # those that results are computed, written or drawn with
    *("accelerate", "datasets", "lm-eval", "matplotlib", "numpy", "pandas", "peft", "pyarrow", "safetensors", "scipy"),
    *("seaborn", "tokenizers", "torch", "transformers"),
)


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python, of this package, and of those of `packages` that are installed."""
    found = {"python": platform.python_version(), "coachhook": __version__}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def computed_with(path: str | os.PathLike) -> dict[str, str]:
    """Versions of the packages that wrote a covariance file, perhaps elsewhere and long ago; empty in older files."""
    with safe_open(path, "numpy") as file:
        return json.loads((file.metadata() or {}).get("coachhook", "{}")).get("versions", {})
