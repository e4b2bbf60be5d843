"""Flat buckets for the parameters of any model, of mixed dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hvdtrain.core.dropin.settings import Settings
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.initializers import ZEROS
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.update.buckets import Bucket, plan_buckets

_MIB = 2**20
# Gradients add up in float32 or float64 whatever the parameter is: 16 bits would lose small micro-batches.
_ACCUMULATORS = {
    "float16": "float32",
    "bfloat16": "float32",
    "float32": "float32",
    "float64": "float64",
}


@dataclass(frozen=True)
class Parameter:
    """What the layout needs to know of a user's parameter.

    Attributes:
        name: unique in the model.
        shape: of it and of its gradient.
        dtype: its name in NumPy, or `bfloat16`.
        trainable: whether it has gradients when training starts.
        shared_name: the part of the name that it has on every rank, where that is not all of it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool = True
    shared_name: str | None = None


def accumulator(parameter: Parameter) -> str:
    """The dtype that a parameter's gradients are added up and reduced in.

    Raises:
        SpecError: for a dtype that has none, such as complex64.
    """
    if parameter.dtype not in _ACCUMULATORS:
        raise SpecError(
            f"parameter {parameter.name!r}: dtype {parameter.dtype} cannot be reduced, expected one of "
            f"{', '.join(_ACCUMULATORS)}: leave it out of the optimizer"
        )
    return _ACCUMULATORS[parameter.dtype]


def lay_out(parameters: Sequence[Parameter], settings: Settings, first: int = 0) -> tuple[Bucket, ...]:
    """Put parameters into buckets; each is of one dtype, one compression policy, and trainable or frozen.

    Args:
        parameters: in the order of the forward pass.
        settings: whose `compression` and `bucket_cap_mb` count.
        first: index of the first bucket.

    Returns:
        Buckets numbered from `first`; their weights' decay is not told apart.

    Raises:
        SpecError: a dtype that cannot be reduced.
    """
    kinds: dict[tuple[str, bool], list[Weight]] = {}
    for p in parameters:
        weight = Weight(p.name, p.shape, decays=True, initial=ZEROS)
        kinds.setdefault((accumulator(p), p.trainable), []).append(weight)
    found = [
        bucket
        for (dtype, _), weights in kinds.items()
        for bucket in plan_buckets(
            weights, np.dtype(dtype).itemsize, settings.bucket_cap_mb * _MIB, settings.rules.apart
        )
    ]
    return tuple(replace(bucket, index=first + i) for i, bucket in enumerate(found))
