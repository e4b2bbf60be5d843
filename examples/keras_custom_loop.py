"""Handwritten digits in a TensorFlow loop of one's own, with a tape that reduces gradients.

    mpirun -np 2 python examples/keras_custom_loop.py

The same network, numbers and order of samples as the other examples, so in float64 their curves agree.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import hvdtrain.tensorflow as hvd
from hvdtrain.core.dropin import share_of_epoch

# isort: split
import keras
import tensorflow as tf

TRAINING, BATCH, EPOCHS = 1500, 32, 3


def main() -> None:
    options = parse()
    keras.config.set_floatx(options.dtype)
    hvd.init()
    x, y = load_digits(return_X_y=True)
    images, digits = tf.constant(x / 16, options.dtype), tf.constant(y, tf.int32)

    model = network()
    # Keras rounds momentum to float32 unless it is NumPy's.
    optimizer = keras.optimizers.SGD(0.1, momentum=np.float64(0.9))
    measure = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    hvd.broadcast_variables(model.weights, root_rank=0)

    @tf.function(reduce_retracing=True)
    def step(rows: tf.Tensor) -> tf.Tensor:
        samples = tf.shape(rows)[0]
        with tf.GradientTape() as tape:
            loss = measure(tf.gather(digits, rows), model(tf.gather(images, rows), training=True))
        # Weighted by samples, so that ragged batches give what one process would compute.
        tape = hvd.DistributedGradientTape(
            tape, compression=options.compression, average="samples", batch_samples=samples
        )
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    curve = []
    for epoch in range(EPOCHS):
        # Without the last samples that not every rank would have: all ranks take equally many steps.
        mine = share_of_epoch(0, epoch, TRAINING, hvd.rank(), hvd.size(), drop_last=True)
        for start in range(0, len(mine), BATCH):
            rows = mine[start : start + BATCH]
            loss = step(tf.constant(rows))
            sums = tf.constant([float(loss) * len(rows), len(rows)], tf.float64)
            loss_sum, samples = hvd.allreduce(sums, op=hvd.Sum, name="loss").numpy()
            curve.append(float(loss_sum / samples))
        if hvd.rank() == 0:
            print(f"epoch {epoch + 1}: loss {curve[-1]:.4f}", flush=True)
    if options.curve and hvd.rank() == 0:
        options.curve.write_text(json.dumps(curve))
    hvd.shutdown()


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
    parser.add_argument("--curve", type=Path, help="rank 0 writes the loss of every update here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
