"""What the leverage gate takes beside hook layers: sketches, retrieval, its calibrations' keys, and what a pass adds.

Legend: m width of a layer's keys, d of hidden states, p edits of the stream, r rows of the sketch, n background keys.
"""

from __future__ import annotations

from itertools import pairwise

from coachhook.stream_needs import GateNeeds, StreamShape

_SKETCH_COPIES = 4  # m×r in float64 at once: what was drawn, its orthogonal basis, that times C0's root, and scaled
_PRODUCTS = 2  # of every token with V or S in float32: as such, and squared
_WEIGHTS = 3  # per edit of every token's retrieval: its coordinate in V, its cosine, its weight
_ROOT_COPIES = 4  # p×p in float64 while a retrieval is made: C, the identity, C⁻¹, and what is rounded


def leverage_gate_needs(shape: StreamShape) -> GateNeeds:
    """Bytes of the gates of all layers."""
    rows = [min(shape.config.sketch_size, width) for width in shape.widths]
    drawn = [width * size for width, size in zip(shape.widths, rows, strict=True)]
    edits = shape.edits_kept if shape.config.retrieval_sharpness is not None else 0
    of_token = 4 * max(_PRODUCTS * max(shape.edits_kept, *rows), _WEIGHTS * edits)
    ends = [min(start + shape.batch, edits) for start in range(0, edits, shape.batch)]
    kept = len(rows) * 4 * sum((end - start) * end for start, end in pairwise([0, *ends]))  # rows of C
    root = 4 * edits**2
    if shape.item < 4:
        of_token += 4 * max(shape.widths)  # its key, in float32
    return GateNeeds(
        keeps_factors=True,
        held=4 * sum(drawn) + kept + 2 * root * len(rows),  # two matrices are made of C
        background=sum(4 * shape.background * width for width in shape.widths),
        journal=2 * sum(drawn) + kept,
        making=max(8 * _SKETCH_COPIES * max(drawn), 2 * _ROOT_COPIES * root),
        of_token=of_token,
    )
