"""The array verbs of compression policies, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from horovod.torch import mpi_lib_v2 as mpi_lib

from hvdtrain.core.compression import noise, selection
from hvdtrain.core.compression.bits import GATHER, LARGEST, SIGNS
from hvdtrain.torch.world import device


@dataclass(frozen=True)
class Ops:
    """Implements `hvdtrain.core.compression.verbs.Ops`.

    Attributes:
        ranks: how many take part.
        rank: which of them this is.
        seed: of random numbers.
    """

    ranks: int
    rank: int
    seed: int

    @cached_property
    def _subsets(self) -> noise.Subsets:
        return noise.Subsets(self.seed)

    def cast(self, array: torch.Tensor, dtype: str) -> torch.Tensor:
        """`array` as `dtype`, rounded to nearest even."""
        return array.to(getattr(torch, dtype))

    def dtype(self, array: torch.Tensor) -> str:
        """The name of the dtype of `array`."""
        return str(array.dtype).removeprefix("torch.")

    def to_bytes(self, array: torch.Tensor) -> torch.Tensor:
        """The memory of each row."""
        return array.contiguous().view(torch.uint8)

    def from_bytes(self, array: torch.Tensor, dtype: str) -> torch.Tensor:
        """The inverse of `to_bytes`."""
        # A copy, because a slice need not lie where the dtype may lie.
        return array.clone(memory_format=torch.contiguous_format).view(getattr(torch, dtype))

    def zeros(self, shape: Sequence[int], dtype: str) -> torch.Tensor:
        """Zeros that nobody else refers to."""
        return torch.zeros(tuple(shape), dtype=getattr(torch, dtype), device=device())

    def reshape(self, array: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The same elements in another shape."""
        return array.reshape(tuple(shape))

    def split(self, flat: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
        """Consecutive parts of a vector."""
        return list(flat.split(list(sizes)))

    def concat(self, arrays: Sequence[torch.Tensor], into: torch.Tensor | None = None) -> torch.Tensor:
        """Arrays behind each other along the last axis."""
        return torch.cat(list(arrays), dim=-1, out=into)

    def transpose(self, matrix: torch.Tensor) -> torch.Tensor:
        """Rows and columns exchanged."""
        return matrix.t()

    def max(self, array: torch.Tensor) -> torch.Tensor:
        """The largest element along the last axis."""
        return array.amax(dim=-1)

    def sum(self, array: torch.Tensor) -> torch.Tensor:
        """The sum along the first axis."""
        return array.sum(dim=0)

    def magnitude(self, array: torch.Tensor) -> torch.Tensor:
        """The largest magnitude along the last axis."""
        low, high = _extremes(array)
        return torch.maximum(-low, high)

    def poison(self, array: torch.Tensor) -> torch.Tensor:
        """0 where all elements along the last axis are finite, else NaN."""
        # Exact, and no copy: a sum would overflow, and isfinite writes a mask of its own.
        low, high = _extremes(array)
        return low * 0 + high * 0

    def clip(self, array: torch.Tensor, low: float, high: float) -> torch.Tensor:
        """Each element moved into [low, high]."""
        return array.clamp(low, high)

    def where(self, condition: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
        """`yes` where the condition holds, else `no`."""
        return torch.where(condition, yes, no)

    def narrow(
        self, flat: torch.Tensor, scale: torch.Tensor, limit: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`flat * scale` as float16, and how many elements exceed `limit`."""
        if codec := _codec("narrow", flat):
            halves, clips = codec(flat, float(scale), limit)
            return halves, torch.tensor(clips)
        halves = flat.mul_(scale).half()
        # On a CPU looking is cheap, and hardly an update ever has anything to clip.
        if not halves.is_cuda and bool(self.magnitude(halves) < limit):
            return halves, torch.zeros((), dtype=torch.int64)
        # On a GPU what counts is how many kernels are launched.
        magnitudes = flat.abs_()
        clipped = torch.where(magnitudes < torch.inf, halves.clamp(-limit, limit), halves)
        return clipped, (magnitudes > limit).sum()

    def widen(
        self, halves: torch.Tensor, scale: torch.Tensor, flat: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The inverse of `narrow`: `halves / scale` and its largest magnitude."""
        if codec := _codec("widen", flat):
            return flat, torch.tensor(codec(halves, 1.0 / float(scale), flat))
        # Copying first and dividing in place spares a temporary as large as the bucket.
        wide = flat.copy_(halves).div_(scale)
        return wide, torch.linalg.vector_norm(halves, torch.inf).float() / scale.float()

    def shorten(self, flat: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`flat + residual` as bfloat16, and what its rounding took."""
        if codec := _codec("shorten", flat):
            return codec(flat, residual)
        flat += residual
        sent = flat.bfloat16()
        return sent, flat - sent

    def lengthen(self, sums: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """bfloat16 numbers in the dtype of `flat`."""
        if codec := _codec("lengthen", flat):
            codec(sums, flat)
            return flat
        return flat.copy_(sums)

    def quantise(
        self, numbers: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Each row as int8 multiples of a step, and what these do not stand for."""
        if codec := _codec("quantise", numbers):
            return codec(numbers, noise)
        steps = (self.magnitude(numbers) / LARGEST).float()
        divisors = torch.where(steps > 0.0, steps, 1.0).to(numbers.dtype)
        scaled = (numbers / divisors[:, None]).add_(noise)
        multiples = scaled.floor_().clamp_(-LARGEST, LARGEST).to(torch.int8)
        return steps, multiples, numbers.sub_(multiples * steps.to(numbers.dtype)[:, None])

    def dequantise(self, steps: torch.Tensor, multiples: torch.Tensor, dtype: str) -> torch.Tensor:
        """What `quantise` says."""
        steps = self.cast(steps, dtype)
        if codec := _codec("dequantise", steps):
            return codec(steps, multiples)
        return self.cast(multiples, dtype).mul_(steps[:, None])

    def power_of_two(self, array: torch.Tensor) -> torch.Tensor:
        """The largest power of two not above each element: its exponent bits alone."""
        return (array.float().view(torch.int32) & 0x7F800000).view(torch.float32)

    def matmul(self, left: torch.Tensor, right: torch.Tensor, transpose_right: bool = False) -> torch.Tensor:
        """`left @ right` of matrices, or `left @ right.T`."""
        return left @ (right.t() if transpose_right else right)

    def minus_product(self, matrix: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """`matrix - left @ right`."""
        return matrix.addmm_(left, right, alpha=-1.0)

    def orthogonalise(self, matrix: torch.Tensor) -> torch.Tensor:
        """Orthonormal columns that span those of `matrix`."""
        return torch.linalg.qr(matrix)[0]

    def top_k(self, values: torch.Tensor, k: int) -> torch.Tensor:
        """Where the k largest elements of a vector are."""
        if values.is_cuda:
            return values.topk(k, sorted=False).indices.sort().values.int()
        return _tensor(selection.largest(values.numpy(), k))

    def take(self, flat: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """The elements of a vector, or the rows of a matrix, at `indices`."""
        return flat.index_select(0, indices)

    def scatter_add(self, target: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """`target` with each value, or row, added at its index."""
        return target.index_add_(0, indices, values)

    def spread(self, indices: torch.Tensor, values: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        """Zeros but for each value, or row, at its index."""
        return into.zero_().index_add_(0, indices, values)

    def add_row(self, matrix: torch.Tensor, row: int, values: torch.Tensor) -> torch.Tensor:
        """`matrix` with a vector added to one of its rows."""
        matrix[row] += values
        return matrix

    def pack_signs(self, array: torch.Tensor) -> torch.Tensor:
        """Whether each element is at least 0, eight to a byte."""
        # On a CPU NumPy compares, packs and looks up several times faster.
        if not array.is_cuda:
            return torch.from_numpy(np.packbits(array.numpy() >= 0.0))
        octets = torch.nn.functional.pad(array >= 0.0, (0, -len(array) % 8)).view(torch.int64)
        return ((octets * GATHER) >> 56).to(torch.uint8)

    def unpack_signs(self, packed: torch.Tensor, count: int, dtype: str) -> torch.Tensor:
        """What the first `count` bits of a vector of bytes say: 1 or -1."""
        if not packed.is_cuda:
            signs = np.take(SIGNS.astype(dtype), packed.numpy(), axis=0)
            return torch.from_numpy(signs).view(-1)[:count]
        octets = self.cast(torch.from_numpy(SIGNS), dtype).to(device())
        return octets.index_select(0, packed.int()).view(-1)[:count]

    def random_uniform(self, size: int, purpose: str, update: int, *indices: int) -> torch.Tensor:
        """`size` float32 numbers in [0, 1)."""
        return _tensor(noise.uniform(size, self.seed, purpose, update, *indices))

    def random_subset(self, size: int, k: int, purpose: str, update: int, *indices: int) -> torch.Tensor:
        """k different positions below `size`."""
        return _tensor(self._subsets.draw(size, k, purpose, update, *indices))

    def random_orthonormal(
        self, rows: int, columns: int, purpose: str, update: int, *indices: int
    ) -> torch.Tensor:
        """Orthonormal columns."""
        return _tensor(noise.orthonormal(rows, columns, self.seed, purpose, update, *indices))


def _extremes(array: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and the largest element along the last axis."""
    # One pass where there is a quick one: PyTorch's along an axis is many times slower than two passes.
    return torch.aminmax(array) if array.dim() == 1 else (array.amin(dim=-1), array.amax(dim=-1))


def _codec(name: str, flat: torch.Tensor) -> Callable[..., Any] | None:
    """A codec that makes one pass, where Horovod was built with it and it takes such a vector."""
    if flat.dtype is torch.float32 and flat.is_contiguous() and not flat.is_cuda:
        return getattr(mpi_lib, f"horovod_torch_{name}", None)
    return None


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(device())
