"""Which of a data set's requests a stream is made of, and in which order."""

from __future__ import annotations

import random
from collections.abc import Sequence

from coachhook.edit_request import EditRequest, RequestError, mark_superseded


def draw_requests(requests: Sequence[EditRequest], count: int, seed: int) -> list[EditRequest]:
    """`count` of the requests in an order drawn from `seed`, with `superseded` marked for that order.

    Raises:
        RequestError: there are fewer.
    """
    if count > len(requests):
        raise RequestError(f"the stream wants {count} edits, the data set has {len(requests)}; lower edits")
    return mark_superseded(random.Random(seed).sample(list(requests), count))
