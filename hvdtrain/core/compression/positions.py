"""Values that travel with their positions: what `topk` and lookup tables have in common."""

from __future__ import annotations

from collections.abc import Generator

from hvdtrain.core.compression.protocol import AllGather, Array, Ops, Request

POSITION_BYTES = 4


def gather_and_sum(ops: Ops, values: Array, indices: Array, into: Array) -> Generator[Request, Array, Array]:
    """One allgather of values, or rows, and where they belong; every rank sums them in the order of ranks.

    Args:
        ops: the framework's array verbs.
        values: this rank's, shape (k,) or (k, columns).
        indices: their places along the first axis of the sum, int32 (k,), none twice.
        into: what the sum is like, and whose memory it may take.

    Returns:
        A generator whose return value is the sum, in the dtype of `values`.
    """
    dtype = ops.dtype(values)
    message = ops.concat([ops.to_bytes(ops.reshape(values, (-1,))), ops.to_bytes(indices)])
    gathered = yield AllGather(message)
    tail = gathered.shape[1] - POSITION_BYTES * indices.shape[0]
    for rank in range(ops.ranks):
        places = ops.from_bytes(gathered[rank, tail:], "int32")
        theirs = ops.reshape(ops.from_bytes(gathered[rank, :tail], dtype), values.shape)
        into = ops.scatter_add(into, places, theirs) if rank else ops.spread(places, theirs, into)
    return into
