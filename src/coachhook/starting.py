"""Imported first by programs: torch and transformers' model code come in while Python's garbage collector rests.

They leave half a million objects that stay, and the collector would look through them again and again meanwhile: a
sixth of the time; and three times more when the program ends, which takes seconds. Jobs of studies, of which there are
hundreds, and commands start so; a library leaves the collector alone.
"""

import gc

_collecting = gc.isenabled()
gc.disable()
try:
    import torch
    import transformers.modeling_utils  # noqa: F401  most of what is imported hangs on it

    gc.freeze()  # what there is now stays until the end, and is not looked through then either
finally:
    if _collecting:
        gc.enable()

__all__ = ["torch"]
