"""Handwritten digits in Keras 3's `fit`: ranks, exact metrics, and a run that can be stopped.

    mpirun -np 2 python examples/keras_digits.py --state outputs/digits-keras

Told to stop by SIGTERM or SIGUSR1 to any rank, it saves and ends with status 85. Started again with the same
`--state`, it goes on where it was stopped, on any number of ranks. The same network, numbers and order of
samples as the PyTorch example, so in float64 their curves agree.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import hvdtrain.keras as hvd
from hvdtrain.keras import callbacks

# isort: split
import keras

TRAINING, GLOBAL_BATCH, EPOCHS = 1500, 64, 3


def main() -> None:
    options = parse()
    keras.config.set_floatx(options.dtype)
    hvd.init()
    x, y = load_digits(return_X_y=True)
    images, digits = (x / 16).astype(options.dtype), y.astype("int32")

    # Keras rounds momentum to float32 unless it is NumPy's.
    sgd = keras.optimizers.SGD(0.1, momentum=np.float64(0.9))
    optimizer = hvd.DistributedOptimizer(sgd, compression=options.compression, average="samples")
    model = network()
    model.compile(
        optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    curve, data = Curve(), hvd.dataset(Digits(images[:TRAINING], digits[:TRAINING]), GLOBAL_BATCH, seed=0)
    given = [callbacks.BroadcastGlobalVariables(0), callbacks.MetricAverage(), callbacks.ProgressBar()]
    if options.state:
        given.append(callbacks.Checkpoint(options.state, dataset=data, save_steps=options.save_steps))
    if options.curve:
        given.append(curve)
    mine = slice(TRAINING + hvd.rank(), None, hvd.size())
    model.fit(
        data,
        epochs=EPOCHS,
        validation_data=(images[mine], digits[mine]),
        shuffle=False,
        callbacks=given,
    )
    if options.curve and hvd.rank() == 0:
        options.curve.write_text(json.dumps(curve.losses))
    hvd.shutdown()


class Digits:
    """Samples by their number."""

    def __init__(self, images: np.ndarray, digits: np.ndarray) -> None:
        self._images, self._digits = images, digits

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._images[index], self._digits[index]


class Curve(keras.callbacks.Callback):
    """The loss of every update over all ranks' samples."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.model.reset_metrics()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        own = [float(v.numpy()) for v in self.model.metrics[0].variables]
        loss_sum, samples = hvd.allreduce(np.array(own), op=hvd.Sum, name="curve").numpy()
        self.losses.append(float(loss_sum / samples))


def network() -> keras.Model:
    """64-32-10 with tanh; its weights are drawn by NumPy, for other frameworks to draw the same."""
    draw = np.random.default_rng(0)
    layers = [keras.layers.Dense(32, activation="tanh"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    for layer in layers:
        kernel, bias = layer.weights
        layer.set_weights([draw.normal(0.0, 0.1, kernel.shape), np.zeros(bias.shape)])
    return model


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compression", default="none", help="such as fp16 (default: none)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"), help="of everything")
    parser.add_argument(
        "--state", type=Path, help="go on from the checkpoints in this directory, and save there"
    )
    parser.add_argument("--save-steps", type=int, default=10, help="updates between saves (default: 10)")
    parser.add_argument("--curve", type=Path, help="rank 0 writes the loss of every update here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
