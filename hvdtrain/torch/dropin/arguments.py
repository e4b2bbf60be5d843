"""The wrapper's arguments, and Horovod's spelling of them."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd

from hvdtrain.core.dropin import Settings, make_settings
from hvdtrain.core.errors import SpecError

# They arrange what buckets arrange here, or choose between ways to the same sums.
_MEANINGLESS = {"num_groups", "groups", "sparse_as_dense"}
_COMPRESSION = {hvd.Compression.none: "none", hvd.Compression.fp16: "fp16"}


def settings_of(
    compression: Any,
    gradient_accumulation_steps: int,
    max_grad_norm: float | None,
    average: str,
    bucket_cap_mb: float,
    horovod: dict[str, Any],
) -> Settings:
    """Settings from the arguments of `DistributedOptimizer`.

    Args:
        compression: ours, or one of Horovod's classes.
        gradient_accumulation_steps: k.
        max_grad_norm: largest norm, or None.
        average: what is divided by.
        bucket_cap_mb: in MiB.
        horovod: arguments by Horovod's names.

    Raises:
        SpecError: an argument is unknown, said twice, or has no exact counterpart here.
    """
    rest = {name: value for name, value in horovod.items() if name not in _MEANINGLESS}
    op = rest.pop("op", hvd.Average)
    if rest.pop("gradient_predivide_factor", 1.0) != 1.0 and op != hvd.Average:
        raise SpecError("DistributedOptimizer: gradient_predivide_factor goes with op=Average alone")
    if rest.pop("process_set", hvd.global_process_set) is not hvd.global_process_set:
        raise SpecError("DistributedOptimizer: process_set: all ranks take part; leave it out")
    if isinstance(compression, type):
        if compression not in _COMPRESSION:
            raise SpecError(
                f"DistributedOptimizer: compression {compression.__name__}: expected Compression.none, "
                "Compression.fp16, or a policy of docs/compression.md such as 'int8'"
            )
        compression = _COMPRESSION[compression]
    if op != hvd.Average:
        average, compression = _of_op(op, average, compression)
    if "backward_passes_per_step" in rest:
        if gradient_accumulation_steps != 1:
            raise SpecError(
                "DistributedOptimizer: give one of gradient_accumulation_steps, which takes the mean of "
                "micro-batches, and backward_passes_per_step, which adds them up"
            )
        gradient_accumulation_steps = rest.pop("backward_passes_per_step")
        average = "ranks" if average == "mean" else average
    return make_settings(
        "DistributedOptimizer",
        compression=compression,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_grad_norm=max_grad_norm,
        average=average,
        bucket_cap_mb=bucket_cap_mb,
        **rest,
    )


def _of_op(op: Any, average: str, compression: Any) -> tuple[str, Any]:
    if average != "mean":
        raise SpecError(
            f"DistributedOptimizer: op says how to divide, and so does average={average!r}: give one"
        )
    if op == hvd.Sum:
        return "sum", compression
    if op == hvd.Adasum and compression == "none":
        return average, "adasum"
    if op == hvd.Adasum:
        raise SpecError(f"DistributedOptimizer: op=Adasum goes without compression, found {compression!r}")
    raise SpecError("DistributedOptimizer: op: expected Average, Sum or Adasum")
