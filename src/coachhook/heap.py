"""What glibc's heap holds of tensors that come and go: more than they take, as it keeps what is freed in pieces."""

MAPPED = 32 * 2**20
"""Bytes of a tensor that glibc takes from the system, and gives back, by itself."""
IN_PIECES = 1.5
"""Of what smaller tensors take at once, what the heap holds: benchmarks/stream_memory.py, covariance_memory.py."""


def in_heap(count: int, tensor: int) -> int:
    """Bytes of main memory that `count` bytes take, in tensors of `tensor` bytes each."""
    return round(count * IN_PIECES) if tensor < MAPPED else count
