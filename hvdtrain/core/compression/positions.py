"""Values that travel with their positions: what `topk` and lookup tables have in common."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from hvdtrain.core.compression.protocol import AllGather, Array, Ops, Request

POSITION_BYTES = 4


def gather_and_sum(
    ops: Ops, values: Array, indices: Array, shape: Sequence[int]
) -> Generator[Request, Array, Array]:
    """One allgather of values, or rows, and where they belong; every rank sums them in the order of ranks.

    Args:
        ops: the framework's array verbs.
        values: this rank's, shape (k,) or (k, columns).
        indices: their places along the first axis of the sum, int32 (k,), none twice.
        shape: of the sum.

    Returns:
        A generator whose return value is the sum, in the dtype of `values`.
    """
    dtype = ops.dtype(values)
    message = ops.concat([ops.to_bytes(ops.reshape(values, (-1,))), ops.to_bytes(indices)])
    gathered = yield AllGather(message)
    total, tail = ops.zeros(shape, dtype), gathered.shape[1] - POSITION_BYTES * indices.shape[0]
    for rank in range(ops.ranks):
        theirs = ops.reshape(ops.from_bytes(gathered[rank, :tail], dtype), (-1, *shape[1:]))
        total = ops.scatter_add(total, ops.from_bytes(gathered[rank, tail:], "int32"), theirs)
    return total
