"""Versions of what computes."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

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
