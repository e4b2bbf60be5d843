"""worker.py FRAMEWORK DIRECTORY NAME...: policies through an adapter's reducer; each rank leaves RANK.npz.

Update POISONED is not finite on the last rank at first: it must be skipped, and is then repeated.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.update.buckets import Bucket
from tests.conformance.cases import BUCKETS, COMBINING, POLICIES, gradients
from tests.jobs.runs import start_sooner

UPDATES, POISONED = 6, 5
SEED = 11
# Two buckets at once, a large one and the smallest; the simulator is tried with the other layouts.
LAYOUT = (BUCKETS["mixed"], BUCKETS["one element"])
# (the update's number, gradients of each bucket) -> (their sum over ranks, bytes sent since the start).
Step = Callable[[int, list[np.ndarray]], tuple[list[np.ndarray], int]]


def main(framework: str, directory: Path, names: list[str]) -> None:
    make, rank, ranks = {"torch": torch_step, "tensorflow": tensorflow_step}[framework]()
    found: dict[str, np.ndarray] = {}
    for name in names:
        policy = (POLICIES | COMBINING)[name]
        step = make(policy)
        sent_before = 0
        for update in range(1, UPDATES + 1):
            mine = [gradients(update, ranks, bucket.size)[rank] for bucket in LAYOUT]
            if update == POISONED:
                spoilt = [array.copy() for array in mine]
                for array in spoilt if rank == ranks - 1 else ():
                    array[-1] = np.inf
                sums, sent_before = step(update, spoilt)
                found[f"{name}/poisoned"] = np.array([np.isfinite(array).all() for array in sums])
            sums, sent = step(update, mine)
            for bucket, array in zip(LAYOUT, sums, strict=True):
                found[f"{name}/{update}/{bucket.index}"] = array
            found[f"{name}/{update}/bytes"] = np.array(sent - sent_before)
            sent_before = sent
    np.savez(directory / f"{rank}.npz", **found)


def torch_step() -> tuple[Callable[[Policy], Step], int, int]:
    import horovod.torch as hvd
    import torch

    from hvdtrain.torch.reducer import Reducer
    from hvdtrain.torch.world import device

    hvd.init()
    torch.set_num_threads(1)

    def make(policy: Policy) -> Step:
        parameters = {
            w.name: torch.nn.Parameter(torch.ones(w.shape, dtype=torch.float64, device=device()))
            for b in LAYOUT
            for w in b.weights
        }
        reducer = Reducer(Rules((policy,)), LAYOUT, parameters, SEED)

        def step(update: int, mine: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
            def loss() -> torch.Tensor:
                parts = [
                    (parameters[w.name].flatten() * part).sum()
                    for bucket, flat in zip(LAYOUT, mine, strict=True)
                    for w, part in zip(
                        bucket.weights, torch.from_numpy(flat).to(device()).split(bucket.sizes), strict=True
                    )
                ]
                return torch.stack(parts).sum()

            reducer.start_window(update)
            reducer.backward(loss, last=True)
            sums = reducer.finish()
            if all(bool(flat.isfinite().all()) for flat in sums):
                reducer.commit()
            return [flat.cpu().numpy().copy() for flat in sums], reducer.wire_bytes

        return step

    return make, hvd.rank(), hvd.size()


def tensorflow_step() -> tuple[Callable[[Policy], Step], int, int]:
    import horovod.tensorflow as hvd
    import tensorflow as tf

    from hvdtrain.tensorflow.buckets import pack, swap_layout
    from hvdtrain.tensorflow.reducer import Reducer

    hvd.init()

    def make(policy: Policy) -> Step:
        parameters = {
            w.name: tuple(map(tf.Variable, w.layout.split(np.ones(w.shape))))
            for b in LAYOUT
            for w in b.weights
        }
        reducer = Reducer(Rules((policy,)), LAYOUT, parameters, SEED)
        compiled = {}

        def traced(mine: list[tf.Tensor]) -> list[tf.Tensor]:
            def loss() -> tf.Tensor:
                return tf.add_n(
                    [
                        tf.reduce_sum(pack(Bucket(0, (w,)), parameters) * part)
                        for bucket, flat in zip(LAYOUT, mine, strict=True)
                        for w, part in zip(bucket.weights, tf.split(flat, bucket.sizes), strict=True)
                    ]
                )

            reducer.backward(loss, last=True)
            sums = reducer.finish()
            finite = tf.reduce_all(tf.math.is_finite(tf.concat(sums, 0)))

            def commit() -> bool:
                reducer.commit()
                return True

            tf.cond(finite, commit, lambda: False)
            return sums

        def step(update: int, mine: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
            reducer.start_window(update)
            now = compiled.setdefault(policy.at(update), tf.function(traced))
            native = [
                swap_layout(b, tf.constant(flat), to_keras=True) for b, flat in zip(LAYOUT, mine, strict=True)
            ]
            sums = now(native)
            back = [swap_layout(b, flat, to_keras=False) for b, flat in zip(LAYOUT, sums, strict=True)]
            return [flat.numpy() for flat in back], reducer.wire_bytes

        return step

    return make, hvd.rank(), hvd.size()


if __name__ == "__main__":
    start_sooner()
    try:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
