"""norm_ranks.py FRAMEWORK FOLDER: a forward and a backward pass with sync_batch_norm on each rank.

Each rank leaves RANK.npz in the folder: its loss, its own gradients and the running statistics, of two passes
one after the other, by `eager.NAME` and, of TensorFlow, `compiled.NAME`.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.core.data import Batch
from hvdtrain.core.families import resnet
from hvdtrain.core.families.weights import statistics, trained
from tests.jobs.runs import start_sooner

SPEC = resnet.ModelSpec(
    num_labels=4,
    image_size=21,
    num_channels=1,
    embedding_size=4,
    hidden_sizes=(8, 12),
    depths=(1, 2),
    dtype="float64",
    sync_batch_norm=True,
)
ROWS = 6
# Real rows of each rank, by the number of ranks, in the first pass and in the second.
SHARES: dict[int, tuple[tuple[int, ...], ...]] = {2: ((6, 3), (0, 5)), 3: ((4, 0, 2), (1, 6, 3))}


def share(number: int, rank: int, real: int) -> Batch:
    """A rank's micro-batch."""
    from tests.models.images import batch_of

    return batch_of(SPEC, real, ROWS, seed=10 * number + rank)


def main(framework: str, folder: Path) -> None:
    hvd = importlib.import_module(f"horovod.{framework}")
    hvd.init()
    shares = SHARES[hvd.size()]
    batches = [share(i, hvd.rank(), real[hvd.rank()]) for i, real in enumerate(shares)]
    found = in_torch(batches) if framework == "torch" else in_tensorflow(batches)
    np.savez(folder / f"{hvd.rank()}.npz", **found)
    hvd.shutdown()


def in_torch(batches: list[Batch]) -> dict[str, Any]:
    from hvdtrain.torch.model import Model, tensors
    from tests.models.images import resnet_values

    table = resnet.weights(SPEC)
    model, found = Model(SPEC, table), {}
    model.write(resnet_values(SPEC))
    for number, batch in enumerate(batches):
        loss = model.loss_sum(tensors(batch), training=True)
        loss.backward()
        found[f"eager.{number}.loss"] = loss.item()
        for weight in trained(table):
            found[f"eager.{number}.{weight.name}"] = model.parameters[weight.name].grad.numpy().copy()
            model.parameters[weight.name].grad = None
    return found | {f"eager.{name}": array for name, array in model.read(statistics(table))}


def in_tensorflow(batches: list[Batch]) -> dict[str, Any]:
    import tensorflow as tf

    from hvdtrain.tensorflow.model import Model, tensors
    from tests.models.images import resnet_values

    table, found = resnet.weights(SPEC), {}
    for way in ("eager", "compiled"):
        model = Model(SPEC, table)
        model.write(resnet_values(SPEC))
        variables = {w.name: model.parameters[w.name] for w in trained(table)}

        def both(batch: dict[str, Any], model: Model = model, variables: Any = variables) -> Any:
            with tf.GradientTape() as tape:
                loss = model.loss_sum(batch, training=True)
            return loss, tape.gradient(loss, variables)

        call = tf.function(both, autograph=False) if way == "compiled" else both
        for number, batch in enumerate(batches):
            loss, gradients = call(tensors(batch))
            found[f"{way}.{number}.loss"] = loss.numpy()
            for weight in trained(table):
                parts = [part.numpy() for part in gradients[weight.name]]
                found[f"{way}.{number}.{weight.name}"] = weight.layout.join(parts, weight.shape)
        found |= {f"{way}.{name}": array for name, array in model.read(statistics(table))}
    return found


if __name__ == "__main__":
    start_sooner()
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
