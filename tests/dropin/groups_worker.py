"""groups_worker.py FRAMEWORK: two groups of two ranks each train a model of their own; run on 4 ranks."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from hvdtrain.core.errors import SpecError
from tests.jobs.runs import start_sooner

ROWS, FEATURES, RATE, UPDATES = 4, 3, 0.1, 4


def data(rank: int, update: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng([rank, update])
    return random.normal(size=(ROWS, FEATURES)), random.normal(size=(ROWS, 1))


def expected(ranks: list[int], steps: int = 1) -> np.ndarray:
    """The weights of a linear map after gradient descent on all rows of the ranks."""
    weight = np.full((FEATURES, 1), 0.5 + ranks[0])
    for update in range(0, UPDATES, steps):
        gradient = np.zeros_like(weight)
        for rank in ranks:
            for x, y in (data(rank, update + i) for i in range(steps)):
                gradient += 2 * x.T @ (x @ weight - y) / (ROWS * steps * len(ranks))
        weight = weight - RATE * gradient
    return weight


def with_torch(hvd: Any, own: Any, other: Any) -> None:
    import torch

    for options, steps in (({}, 1), ({"average": "samples"}, 1), ({"gradient_accumulation_steps": 2}, 2)):
        model = torch.nn.Linear(FEATURES, 1, bias=False).double()
        torch.nn.init.constant_(model.weight, 0.5 + own.ranks[0])
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), RATE), model.named_parameters(), process_set=own, **options
        )
        for update in range(UPDATES):
            x, y = map(torch.tensor, data(hvd.rank(), update))
            optimizer.batch_samples = ROWS
            torch.nn.functional.mse_loss(model(x), y).backward()
            if (update + 1) % steps == 0:
                optimizer.step()
                optimizer.zero_grad()
        found = model.weight.detach().numpy().T
        np.testing.assert_allclose(found, expected(own.ranks, steps), rtol=1e-12)
    # Of policies that gather, and the same refusals as below.
    model = torch.nn.Linear(FEATURES, 1, bias=False)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), RATE), process_set=own, compression="int8"
    )
    with pytest.raises(Exception, match=r"weight|group0\.0"):
        # Ranks of a group are compared with each other: these have drawn other weights.
        model(torch.ones(1, FEATURES)).sum().backward()
    refuse(hvd, lambda **o: hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), RATE), **o), other)


def with_tensorflow(hvd: Any, own: Any, other: Any) -> None:
    import keras
    import tensorflow as tf

    import hvdtrain.keras

    start = np.full((FEATURES, 1), 0.5 + own.ranks[0])
    for options, steps in (({}, 1), ({"average": "samples"}, 1), ({"gradient_accumulation_steps": 2}, 2)):
        weight = keras.Variable(start, dtype="float64", name="weight")
        optimizer = hvdtrain.keras.DistributedOptimizer(
            keras.optimizers.SGD(np.float64(RATE)), process_set=own, **options
        )
        for update in range(UPDATES):
            x, y = data(hvd.rank(), update)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((tf.matmul(x, weight) - y) ** 2)
            optimizer.batch_samples = ROWS
            optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])
        np.testing.assert_allclose(weight.numpy(), expected(own.ranks, steps), rtol=1e-6)
    variable = tf.Variable(start)
    for update in range(UPDATES):
        x, y = data(hvd.rank(), update)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((tf.matmul(x, variable) - y) ** 2)
        tape = hvd.DistributedGradientTape(tape, process_set=own)
        variable.assign_sub(RATE * tape.gradient(loss, [variable])[0])
    np.testing.assert_allclose(variable.numpy(), expected(own.ranks), rtol=1e-12)
    refuse(hvd, lambda **o: hvdtrain.keras.DistributedOptimizer(keras.optimizers.SGD(RATE), **o), other)


def refuse(hvd: Any, wrap: Any, other: Any) -> None:
    for options, text in (
        ({"process_set": other}, "this rank is not among"),
        ({"process_set": hvd.ProcessSet([0, 3])}, "does not know ranks"),
        ({"process_set": [0, 1]}, "expected a ProcessSet"),
    ):
        with pytest.raises(SpecError, match=text):
            wrap(**options)


def main(framework: str) -> None:
    if framework == "torch":
        import hvdtrain.torch as hvd
    else:
        import hvdtrain.tensorflow as hvd  # type: ignore[no-redef]
    groups = [hvd.ProcessSet([0, 2]), hvd.ProcessSet([1, 3])]
    hvd.init(process_sets=groups)
    own, other = groups if hvd.rank() in (0, 2) else groups[::-1]
    (with_torch if framework == "torch" else with_tensorflow)(hvd, own, other)
    print(f"RANK {hvd.rank()} DONE", flush=True)
    # A rank that leaves ends the job of all, and groups do not wait for each other.
    hvd.allgather_object("done", name="end")
    hvd.shutdown()


if __name__ == "__main__":
    start_sooner()
    main(*sys.argv[1:])
