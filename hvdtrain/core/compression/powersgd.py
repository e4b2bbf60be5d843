"""Low-rank gradients by one step of power iteration: PowerSGD (Vogels et al. 2019, arXiv:1905.13727)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import iadd
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hvdtrain.core.compression.none import NoCompression
from hvdtrain.core.compression.protocol import AllReduce, Array, Ops, Policy, Reduction, State
from hvdtrain.core.update.buckets import Bucket


class PowerSGD(Policy):
    """Sums each large matrix M as P Qᵀ; vectors and matrices not worth it travel as they are.

    Names and defaults are those of PyTorch's hook. With the sum instead of the mean over n ranks, a rank's
    residual is M - P Qᵀ / n. State: `residual` (the compressed matrices behind each other) and `q` (each Qᵀ).

    Attributes:
        matrix_approximation_rank: columns of P and Q.
        start_powerSGD_iter: updates at the start that are not compressed.
        min_compression_rate: a matrix is compressed when that makes it smaller by more than this factor.
        use_error_feedback: whether what a low rank cannot tell is added to the next update's gradients.
        warm_start: whether an update starts from the last one's Q; else from a random one.
    """

    residuals: ClassVar[frozenset[str]] = frozenset({"residual"})
    type: Literal["powersgd"] = "powersgd"
    matrix_approximation_rank: Annotated[int, Field(ge=1)] = 1
    start_powerSGD_iter: Annotated[int, Field(ge=0)] = 1000
    min_compression_rate: Annotated[float, Field(gt=0.0)] = 2.0
    use_error_feedback: bool = True
    warm_start: bool = True

    def at(self, update: int) -> Policy:
        """No compression during the first `start_powerSGD_iter` updates."""
        return self if update > self.start_powerSGD_iter else NoCompression()

    def init(self, ops: Ops, bucket: Bucket, dtype: str) -> State:
        """Nothing was lost yet; every Q is random and orthonormal."""
        shapes, state = self._shapes(bucket), {}
        if shapes and self.use_error_feedback:
            state["residual"] = ops.zeros((sum(s.size for s in shapes),), dtype)
        if shapes and self.warm_start:
            state["q"] = _flat(ops, self._random_q(ops, bucket, 0, dtype))
        return state

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allreduce for P and all that is not compressed, and one for Q."""
        shapes, dtype = self._shapes(bucket), ops.dtype(flat)
        parts = ops.split(flat, bucket.sizes)
        chosen = [self._shape(shape) is not None for shape in bucket.shapes]
        plain = [part for part, low in zip(parts, chosen, strict=True) if not low]
        if not shapes:
            total = yield AllReduce(flat)
            return total, state
        # Matrix by matrix rather than all at once: what was just made is then still in the cache.
        matrices = [part for part, low in zip(parts, chosen, strict=True) if low]
        if self.use_error_feedback:
            waiting = ops.split(state["residual"], [s.size for s in shapes])
            matrices = [iadd(part, rest) for part, rest in zip(matrices, waiting, strict=True)]
        ms = [ops.reshape(part, (s.rows, s.columns)) for part, s in zip(matrices, shapes, strict=True)]
        # Thin factors are made as their transposes: BLAS is several times slower the other way round.
        tall, wide = [(s.rank, s.rows) for s in shapes], [(s.rank, s.columns) for s in shapes]
        qs = _unflat(ops, state["q"], wide) if self.warm_start else self._random_q(ops, bucket, update, dtype)
        ps = [ops.matmul(q, m, transpose_right=True) for q, m in zip(qs, ms, strict=True)]
        summed = yield AllReduce(_flat(ops, [*plain, *ps]))
        *plain, p = ops.split(summed, [*(p.shape[0] for p in plain), sum(rows * k for k, rows in tall)])
        ps = [ops.orthogonalise(ops.transpose(p)) for p in _unflat(ops, p, tall)]
        q = yield AllReduce(
            _flat(ops, [ops.matmul(ops.transpose(p), m) for p, m in zip(ps, ms, strict=True)])
        )
        qs = _unflat(ops, q, wide)
        lows = [ops.matmul(p, q) for p, q in zip(ps, qs, strict=True)]
        found: State = {}
        if self.use_error_feedback:
            sent = zip(ms, ps, qs, strict=True)
            found["residual"] = _flat(ops, [ops.minus_product(m, p, q / ops.ranks) for m, p, q in sent])
        if self.warm_start:
            found["q"] = q
        return _merge(ops, chosen, plain, [ops.reshape(low, (-1,)) for low in lows], flat), found

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """P and Q of each compressed matrix, and everything else as it is."""
        shapes = self._shapes(bucket)
        plain = bucket.size - sum(s.size for s in shapes)
        return itemsize * (plain + sum((s.rows + s.columns) * s.rank for s in shapes))

    def _shapes(self, bucket: Bucket) -> list[_Shape]:
        return [found for shape in bucket.shapes if (found := self._shape(shape))]

    def _shape(self, shape: Sequence[int]) -> _Shape | None:
        if len(shape) < 2 or 0 in shape:
            return None
        columns = 1
        for extent in shape[1:]:
            columns *= extent
        rank = min(shape[0], columns, self.matrix_approximation_rank)
        compressed = (shape[0] + columns) * rank
        if compressed * self.min_compression_rate >= shape[0] * columns:
            return None
        return _Shape(shape[0], columns, rank)

    def _random_q(self, ops: Ops, bucket: Bucket, update: Array, dtype: str) -> list[Array]:
        """Qᵀ of each compressed matrix."""
        drawn = (
            ops.random_orthonormal(s.columns, s.rank, "powersgd", update, bucket.index, i)
            for i, s in enumerate(self._shapes(bucket))
        )
        return [ops.transpose(ops.cast(q, dtype)) for q in drawn]


@dataclass(frozen=True)
class _Shape:
    """A weight seen as a matrix, as PyTorch's hook sees it, and the rank that approximates it."""

    rows: int
    columns: int
    rank: int

    @property
    def size(self) -> int:
        return self.rows * self.columns


def _flat(ops: Ops, arrays: Sequence[Array]) -> Array:
    return ops.concat([ops.reshape(array, (-1,)) for array in arrays])


def _unflat(ops: Ops, flat: Array, shapes: Sequence[tuple[int, int]]) -> list[Array]:
    parts = ops.split(flat, [rows * columns for rows, columns in shapes])
    return [ops.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def _merge(
    ops: Ops, chosen: Sequence[bool], plain: Sequence[Array], low: Sequence[Array], into: Array
) -> Array:
    plain_parts, low_parts = iter(plain), iter(low)
    return ops.concat([next(low_parts if is_low else plain_parts) for is_low in chosen], into)
