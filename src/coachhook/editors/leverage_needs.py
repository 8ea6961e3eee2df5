"""What the leverage gate takes beside hook layers: its sketches, its calibrations' keys, and what a pass adds to them.

Legend: m width of a layer's keys, d of hidden states, p edits of the stream, r rows of the sketch, n background keys.
"""

from __future__ import annotations

from coachhook.stream_needs import GateNeeds, StreamShape

_SKETCH_COPIES = 4  # m×r in float64 at once: what was drawn, its orthogonal basis, that times C0's root, and scaled
_PRODUCTS = 2  # of every token with V or S in float32: as such, and squared


def leverage_gate_needs(shape: StreamShape) -> GateNeeds:
    """Bytes of the gates of all layers."""
    rows = [min(shape.config.sketch_size, width) for width in shape.widths]
    drawn = [width * size for width, size in zip(shape.widths, rows, strict=True)]
    of_token = 4 * _PRODUCTS * max(shape.edits_kept, *rows)
    if shape.item < 4:
        of_token += 4 * max(shape.widths)  # its key, in float32
    return GateNeeds(
        keeps_factors=True,
        held=4 * sum(drawn),
        background=sum(4 * shape.background * width for width in shape.widths),
        journal=2 * sum(drawn),
        making=8 * _SKETCH_COPIES * max(drawn),
        of_token=of_token,
    )
