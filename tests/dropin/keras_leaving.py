"""keras_leaving.py HOW: rank 1 leaves, or stops, in the second epoch of a `fit`."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import keras
import tensorflow as tf

import hvdtrain.keras as hvd
from hvdtrain.keras import callbacks
from tests.dropin import keras_cases as cases


class Leave(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1 and hvd.rank() == 1:
            if sys.argv[1] == "raise":
                raise RuntimeError("no space left for rank 1")
            if sys.argv[1] == "stop":
                time.sleep(1000)
            if sys.argv[1] == "return":
                self.model.stop_training = True
            if sys.argv[1] == "elsewhere":
                hvd.allreduce(1.0, name="what rank 0 never asks for")
            if sys.argv[1] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)


def loop() -> None:
    """A compiled step of the user's own, whose errors we do not see before they end the program."""
    made, measure = cases.model(), cases.loss()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))

    @tf.function
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            value = measure(y, made(x, training=True))
        gradients = tape.gradient(value, made.trainable_variables)
        optimizer.apply_gradients(zip(gradients, made.trainable_variables, strict=True))

    for x, y in cases.batches([4] * (6 if hvd.rank() == 0 else 3)):
        step(tf.constant(x), tf.constant(y))


hvd.init()
if sys.argv[1] == "loop":
    loop()
    sys.exit()
given = [callbacks.BroadcastGlobalVariables(0), Leave()]
if len(sys.argv) > 2:
    given.append(callbacks.StallGuard(timeout=float(sys.argv[2])))
cases.train(
    hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)), cases.batches([4] * 3), epochs=3, callbacks=given
)
print("trained", hvd.rank(), flush=True)
hvd.shutdown()
