"""`compile` and `fit`, a share of the data a rank, the model saved by rank 0: Horovod's Keras guide."""

import tempfile

import horovod.keras as hvd
import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

hvd.init()
gpus = tf.config.experimental.list_physical_devices("GPU")
if gpus:
    tf.config.experimental.set_visible_devices(gpus[hvd.local_rank()], "GPU")
keras.utils.set_random_seed(7 * (hvd.rank() == 0))
images, labels = load_digits(return_X_y=True)
share = slice(hvd.rank(), 640, hvd.size())
dataset = tf.data.Dataset.from_tensor_slices((images[share] / 16, labels[share])).batch(64 // hvd.size())
model = keras.Sequential([keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10)])
opt = keras.optimizers.Adam(0.01)
opt = hvd.DistributedOptimizer(opt, compression=hvd.Compression.none, op=hvd.Average)
model.compile(
    optimizer=opt,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0), hvd.callbacks.MetricAverageCallback()]
if hvd.rank() == 0:
    path = tempfile.mkdtemp() + "/checkpoint-{epoch}.keras"
    callbacks.append(keras.callbacks.ModelCheckpoint(path))
history = model.fit(dataset, epochs=3, callbacks=callbacks, verbose=1 if hvd.rank() == 0 else 0)
print(f"\nRESULT {hvd.rank()} loss {history.history['loss'][-1]}", flush=True)
print(f"\nRESULT {hvd.rank()} accuracy {history.history['accuracy'][-1]}", flush=True)
weights = sum(float(np.abs(w).sum()) for w in model.get_weights())
print(f"\nRESULT {hvd.rank()} weights {hvd.allreduce(weights, name='weights', average=True)}", flush=True)
