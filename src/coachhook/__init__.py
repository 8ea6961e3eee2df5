"""CoachHooK: consecutive batch model editing with hook layers."""

from importlib import import_module

__version__ = "0.1.0"

# Loaded when first used: reading a study or drawing a figure needs neither torch nor transformers.
_HOMES = {
    "EditRequest": "edit_request",
    "Editor": "editor",
    "Probe": "edit_request",
    "RequestError": "edit_request",
    "compute_covariance": "covariance",
    "declare_architecture": "architectures",
    "methods": "editors",
    "read_requests": "requests",
    "suggested_layers": "layers",
}
__all__ = [*_HOMES, "solver"]


def __getattr__(name: str) -> object:
    if name == "solver":
        return import_module("coachhook.solver")
    if name in _HOMES:
        return getattr(import_module(f"coachhook.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'coachhook' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
