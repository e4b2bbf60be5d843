"""The policies, layouts and gradients that every driver is tried with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hvdtrain.core.compression import Adasum, Bf16, Fp16, Int8, NoCompression, PowerSGD, RandomK, Sign, TopK
from hvdtrain.core.compression.protocol import Policy, State
from hvdtrain.core.families.initializers import ZEROS
from hvdtrain.core.families.weights import SAME, TRANSPOSED, Layout, Weight
from hvdtrain.core.update.buckets import Bucket
from tests.conformance.example_policy import Ternary

POLICIES: dict[str, Policy] = {
    "none": NoCompression(),
    "fp16": Fp16(),
    "bf16": Bf16(),
    "bf16 without feedback": Bf16(use_error_feedback=False),
    "int8": Int8(),
    "int8 small blocks": Int8(block_size=7),
    "int8 without feedback": Int8(use_error_feedback=False),
    "sign": Sign(),
    "sign small blocks": Sign(block_size=5),
    "sign without feedback": Sign(use_error_feedback=False),
    "topk": TopK(),
    "topk without feedback": TopK(ratio=0.1, use_error_feedback=False),
    "topk dgc": TopK(ratio=0.02, momentum=0.9, local_clipping=5.0, warmup_steps=4),
    "randomk": RandomK(ratio=0.1),
    "randomk without feedback": RandomK(ratio=0.1, use_error_feedback=False),
    "randomk dgc": RandomK(ratio=0.02, momentum=0.9, local_clipping=5.0, warmup_steps=4),
    "powersgd": PowerSGD(start_powerSGD_iter=2),
    "powersgd rank 4": PowerSGD(start_powerSGD_iter=0, matrix_approximation_rank=4, min_compression_rate=1.0),
    "powersgd cold": PowerSGD(start_powerSGD_iter=0, warm_start=False, use_error_feedback=False),
    "example": Ternary(),
}

# What is no sum, and asks for a power of two of ranks and MPI.
COMBINING: dict[str, Policy] = {"adasum": Adasum()}


def bucket(index: int, *shapes: Sequence[int]) -> Bucket:
    """A bucket of weights of these shapes; Keras holds those of several axes in other ways."""
    weights = (Weight(f"{index}.{i}", tuple(s), True, ZEROS, _layout(s)) for i, s in enumerate(shapes))
    return Bucket(index, tuple(weights))


def _layout(shape: Sequence[int]) -> Layout:
    """Transposed, in several variables as fused projections, both, or as a convolution."""
    if len(shape) == 2:
        return {20: Layout(parts=2), 33: Layout((1, 0), parts=4)}.get(shape[1], TRANSPOSED)
    return Layout((2, 1, 0)) if len(shape) == 3 else SAME


# Matrices that are worth a low rank and one that is not, a convolution, an empty weight, odd sizes, a scalar.
BUCKETS: dict[str, Bucket] = {
    "mixed": bucket(0, (24, 20), (9, 4, 3), (0, 4), (7,), (), (2, 2)),
    "one element": bucket(1, ()),
    "vectors": bucket(2, (13,), (1,), (300,)),
    "one matrix": bucket(3, (40, 33)),
}


def gradients(seed: int, ranks: int, size: int, dtype: str = "float64") -> np.ndarray:
    """Normal numbers over several magnitudes with some zeros: (ranks, size)."""
    generator = np.random.default_rng([seed, ranks, size])
    found = generator.normal(size=(ranks, size)) * 10.0 ** generator.integers(-3, 2, size=size)
    found[:, generator.random(size) < 0.1] = 0.0
    return found.astype(dtype)


def residual(policy: Policy, layout: Bucket, state: State) -> np.ndarray:
    """A state's residual as a vector over the bucket, in float64."""
    if "residual" not in state:
        return np.zeros(layout.size)
    found = np.asarray(state["residual"], np.float64)
    if found.size == layout.size:
        return found
    # PowerSGD remembers nothing of what it does not compress.
    assert isinstance(policy, PowerSGD)
    parts, offset = [], 0
    for shape, size in zip(layout.shapes, layout.sizes, strict=True):
        compressed = policy._shape(shape) is not None
        parts.append(found[offset : offset + size] if compressed else np.zeros(size))
        offset += size if compressed else 0
    return np.concatenate(parts)
