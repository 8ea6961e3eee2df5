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
    "coachhook-leverage": Registered("leverage:LeverageHook", {"gate": "leverage"}),
    "coachhook-nohook": Registered("coachhook:WithoutHook", {"gate": "off"}),
    "memit": Registered("coachhook:Memit", {"gate": "off", "past_weight": 0.0}),
    "rome": Registered("rome:Rome"),
    "emmet": Registered("emmet:Emmet"),
    "alphaedit": Registered("alphaedit:AlphaEdit"),
    "rect": Registered("rect:Rect"),
    "prune": Registered("prune:Prune"),
    "ultraedit": Registered("ultraedit:UltraEdit"),
    "ft-m": Registered("fine_tuning:FtM", {"loss": "target"}),
    "ft-l": Registered("fine_tuning:FtL", {"loss": "last_prompt_token"}),
    "lora": Registered("lora:Lora"),
    "mend": Registered("mend:Mend"),
    "serac": Registered("serac:Serac"),
    "grace": Registered("grace:Grace"),
    "wise": Registered("wise:Wise"),
}


DEFAULT_METHOD = "coachhook-leverage"
"""For editing one's own model; in the studies `coachhook` is the published method."""


def methods() -> tuple[str, ...]:
    """Names of all methods."""
    return tuple(METHODS)
