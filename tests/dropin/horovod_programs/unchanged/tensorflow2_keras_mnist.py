"""`fit` by tf.keras on a tf.data pipeline with steps per epoch, and a benchmark's loop of `fit` calls."""

import timeit

import horovod.tensorflow.keras as hvd
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

hvd.init()

digits = load_digits()
dataset = tf.data.Dataset.from_tensor_slices(
    (tf.cast(digits.images[..., tf.newaxis] / 16.0, tf.float32), tf.cast(digits.target, tf.int64))
)
dataset = dataset.repeat().shuffle(1000).batch(32)
mnist_model = tf.keras.Sequential(
    [
        tf.keras.layers.Conv2D(8, [3, 3], activation="relu"),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dropout(0.1),
        tf.keras.layers.Dense(10, activation="softmax"),
    ]
)
scaled_lr = 0.002 * hvd.size()
opt = tf.optimizers.Adam(scaled_lr)
# Horovod: add Horovod DistributedOptimizer.
opt = hvd.DistributedOptimizer(opt, backward_passes_per_step=1, average_aggregated_gradients=True)
# Horovod: Specify `experimental_run_tf_function=False` to ensure TensorFlow uses hvd.DistributedOptimizer()
# to compute gradients.
mnist_model.compile(
    loss=tf.losses.SparseCategoricalCrossentropy(),
    optimizer=opt,
    metrics=["accuracy"],
    experimental_run_tf_function=False,
)
callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    hvd.callbacks.MetricAverageCallback(),
    hvd.callbacks.LearningRateWarmupCallback(initial_lr=scaled_lr, warmup_epochs=2, verbose=1),
]
if hvd.rank() == 0:
    callbacks.append(tf.keras.callbacks.ModelCheckpoint("./tf2-{epoch}.h5"))
verbose = 1 if hvd.rank() == 0 else 0
history = mnist_model.fit(
    dataset, steps_per_epoch=40 // hvd.size(), callbacks=callbacks, epochs=3, verbose=verbose
)

loaded = hvd.load_model("./tf2-3.h5", compression=hvd.Compression.none) if hvd.rank() == 0 else mnist_model
difference = max(float(np.abs(a - b).max()) for a, b in zip(loaded.get_weights(), mnist_model.get_weights()))
seconds = timeit.timeit(
    lambda: mnist_model.fit(dataset, batch_size=32, steps_per_epoch=2, verbose=0), number=2
)
total = hvd.allreduce(seconds, name="seconds", average=False)
print(f"\nRESULT {hvd.rank()} tfkeras_first {history.history['loss'][0]}", flush=True)
print(f"\nRESULT {hvd.rank()} tfkeras_last {history.history['loss'][-1]}", flush=True)
print(f"\nRESULT {hvd.rank()} tfkeras_loaded {difference}", flush=True)
print(f"\nRESULT {hvd.rank()} tfkeras_rate {float(mnist_model.optimizer.lr)}", flush=True)
weights = sum(float(np.abs(w).astype("float64").sum()) for w in mnist_model.get_weights())
print(f"\nRESULT {hvd.rank()} tfkeras_weights {weights!r}", flush=True)
