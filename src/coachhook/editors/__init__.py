"""The registry of editing methods: one line each, loaded when asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coachhook.editors.base import Method


@dataclass(frozen=True)
class Registered:
    """A method's class ("module:class" below `coachhook.editors`) and the hyper-parameters that make the variant."""

    location: str
    preset: dict = field(default_factory=dict)

    def load(self) -> type[Method]:
        module, name = self.location.split(":")
        return getattr(import_module(f"coachhook.editors.{module}"), name)


METHODS: dict[str, Registered] = {
    "coachhook": Registered("coachhook:CoachHook", {"gate": "paper"}),
    "coachhook-nohook": Registered("coachhook:CoachHook", {"gate": "off"}),
    "memit": Registered("coachhook:CoachHook", {"gate": "off", "past_weight": 0.0}),
    "ft-m": Registered("fine_tuning:FineTuning"),
}


def methods() -> tuple[str, ...]:
    """Names of all methods."""
    return tuple(METHODS)
