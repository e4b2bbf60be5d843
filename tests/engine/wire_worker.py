"""wire_worker.py FRAMEWORK DIRECTORY: every collective on 16-bit floats; each rank leaves RANK.npz."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = ("bfloat16", "float16")
# The longest goes through every algorithm that cuts arrays into pieces.
SIZES = {"one": 1, "seven": 7, "odd": 1001, "long": 700_001}


def bits(name: str, rank: int) -> np.ndarray:
    """Any 16 bits: numbers of every magnitude, denormals, both zeros, infinities, every kind of NaN."""
    return np.random.default_rng([SIZES[name], rank]).integers(0, 1 << 16, SIZES[name]).astype(np.uint16)


def normal(dtype: str, rank: int) -> np.ndarray:
    """Bits of numbers like gradients, near enough to each other that sums round and cancel."""
    import ml_dtypes

    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    return np.random.default_rng([9, rank]).normal(size=120).astype(kind).view(np.uint16)


def main(framework: str, directory: Path) -> None:
    hvd, wrap, unwrap = {"torch": torch_arrays, "tensorflow": tensorflow_arrays}[framework]()
    rank, ranks, found = hvd.rank(), hvd.size(), {}

    for dtype in DTYPES:

        def keep(name: str, array: Any, dtype: str = dtype) -> None:
            found[f"{dtype}/{name}"] = unwrap(array)

        for size in SIZES:
            keep(f"sum/{size}", hvd.allreduce(wrap(bits(size, rank), dtype), op=hvd.Sum, name=size))
        # Fused, so that arrays begin anywhere in a buffer.
        together = hvd.grouped_allreduce(
            [wrap(bits(size, rank), dtype) for size in SIZES], op=hvd.Sum, name="g"
        )
        for size, array in zip(SIZES, together, strict=True):
            keep(f"fused/{size}", array)
        mine = wrap(normal(dtype, rank), dtype)
        for operation in ("Average", "Min", "Max", "Product"):
            keep(operation, hvd.allreduce(mine, op=getattr(hvd, operation), name=operation))
        keep("allgather", hvd.allgather(wrap(bits("odd", rank), dtype), name="a"))
        keep("broadcast", hvd.broadcast(wrap(bits("odd", rank), dtype), root_rank=ranks - 1, name="b"))
        keep("alltoall", hvd.alltoall(mine, name="c"))
        keep("reducescatter", hvd.reducescatter(mine, op=hvd.Sum, name="r"))
    np.savez(directory / f"{rank}.npz", **found)


Wrap = Callable[[np.ndarray, str], Any]
Unwrap = Callable[[Any], np.ndarray]


def torch_arrays() -> tuple[Any, Wrap, Unwrap]:
    import horovod.torch as hvd
    import torch

    from hvdtrain.torch.world import device

    hvd.init()
    torch.set_num_threads(1)

    def wrap(array: np.ndarray, dtype: str) -> torch.Tensor:
        return torch.from_numpy(array.view(np.int16)).view(getattr(torch, dtype)).to(device())

    return hvd, wrap, lambda tensor: tensor.view(torch.int16).cpu().numpy().view(np.uint16)


def tensorflow_arrays() -> tuple[Any, Wrap, Unwrap]:
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    return (
        hvd,
        lambda array, dtype: tf.bitcast(tf.constant(array), dtype),
        lambda tensor: tf.bitcast(tensor, tf.uint16).numpy(),
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
