"""Gradients of lookup tables: the rows that were looked up, and not the zeros between them."""

from __future__ import annotations

from typing import Literal

from hvdtrain.core.compression.positions import POSITION_BYTES, gather_and_sum
from hvdtrain.core.compression.protocol import Array, Ops, Policy, Reduction, State
from hvdtrain.core.update.buckets import Bucket


class SparseRows(Policy):
    """Sums the rows of a matrix that are not zero, without loss; the plan chooses it where it is fewer bytes.

    As `IndexedSlices` and sparse tensors are reduced, but of a fixed number of rows: at most
    `bucket.touched_rows` differ from zero on a rank, by what an update can look up.
    """

    type: Literal["rows"] = "rows"

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allgather of rows and int32 positions; every rank sums them in the order of ranks."""
        (shape,) = bucket.shapes
        assert bucket.touched_rows is not None
        matrix = ops.reshape(flat, shape)
        indices = ops.top_k(ops.magnitude(matrix), bucket.touched_rows)
        # Comparisons with NaN are arbitrary: its row might not be among the chosen.
        told = ops.take(matrix, indices) + ops.poison(flat)
        total = yield from gather_and_sum(ops, told, indices, into=matrix)
        return ops.reshape(total, (-1,)), state

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """The rows and four bytes of position for each."""
        assert bucket.touched_rows is not None
        return rows_bytes(bucket.touched_rows, bucket.shapes[0][1], itemsize)


def rows_bytes(touched: int, columns: int, itemsize: int) -> int:
    """Bytes of so many rows with their positions."""
    return touched * (columns * itemsize + POSITION_BYTES)


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
