"""Gradients of lookup tables: the rows that were looked up, and not the zeros between them."""

from __future__ import annotations

from typing import Literal

from hvdtrain.core.buckets import Bucket
from hvdtrain.core.compression.protocol import AllGather, Array, Ops, Policy, Reduction, State

_INDEX_BYTES = 4


class SparseRows(Policy):
    """Sums the rows of a matrix that are not zero, without loss; the plan chooses it where it is fewer bytes.

    As `IndexedSlices` and sparse tensors are reduced, but of a fixed number of rows: at most
    `bucket.touched_rows` differ from zero on a rank, by what an update can look up.
    """

    type: Literal["rows"] = "rows"

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allgather of rows and int32 positions; every rank sums them in the order of ranks."""
        (shape,), touched, dtype = bucket.shapes, bucket.touched_rows, ops.dtype(flat)
        assert touched is not None
        rows, columns = shape
        matrix = ops.reshape(flat, shape)
        indices = ops.top_k(ops.max(abs(matrix)), touched)
        # Comparisons with NaN are arbitrary: its row might not be among the chosen.
        values = ops.reshape(ops.take(matrix, indices), (-1,)) + ops.poison(flat)
        gathered = yield AllGather(ops.concat([ops.to_bytes(values), ops.to_bytes(indices)]))
        total = ops.zeros((rows, columns), dtype)
        for rank in range(ops.ranks):
            tail = gathered.shape[1] - _INDEX_BYTES * touched
            theirs = ops.reshape(ops.from_bytes(gathered[rank, :tail], dtype), (touched, columns))
            total = ops.scatter_add(total, ops.from_bytes(gathered[rank, tail:], "int32"), theirs)
        return ops.reshape(total, (-1,)), state

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """The rows and four bytes of position for each."""
        assert bucket.touched_rows is not None
        return rows_bytes(bucket.touched_rows, bucket.shapes[0][1], itemsize)


def rows_bytes(touched: int, columns: int, itemsize: int) -> int:
    """Bytes of so many rows with their positions."""
    return touched * (columns * itemsize + _INDEX_BYTES)


def pays(shape: tuple[int, int], touched: int, itemsize: int, ranks: int) -> bool:
    """Whether a rank receives fewer bytes by gathering rows than by a ring allreduce of the whole matrix.

    Args:
        shape: of the matrix.
        touched: rows that may differ from zero on a rank.
        itemsize: bytes of an element.
        ranks: how many.
    """
    gathered = (ranks - 1) * rows_bytes(touched, shape[1], itemsize)
    return gathered < 2 * (ranks - 1) / ranks * shape[0] * shape[1] * itemsize
