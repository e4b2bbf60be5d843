"""A compiled step with a distributed tape, variables broadcast after the first batch: Horovod's TF2 guide."""

import horovod.tensorflow as hvd
import keras
import tensorflow as tf
from sklearn.datasets import load_digits

hvd.init()
keras.utils.set_random_seed(1)
images, labels = load_digits(return_X_y=True)
dataset = tf.data.Dataset.from_tensor_slices((tf.cast(images / 16, tf.float32), labels))
dataset = dataset.shard(hvd.size(), hvd.rank()).repeat().batch(24)
model = keras.Sequential([keras.layers.Dense(20, activation="tanh"), keras.layers.Dense(10)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
opt = keras.optimizers.SGD(0.01 * hvd.size(), momentum=0.5)


@tf.function
def training_step(images, labels, first_batch):
    with tf.GradientTape() as tape:
        value = loss(labels, model(images, training=True))
    tape = hvd.DistributedGradientTape(tape)
    grads = tape.gradient(value, [v.value for v in model.trainable_variables])
    opt.apply_gradients(zip(grads, model.trainable_variables))  # noqa: B905
    if first_batch:
        hvd.broadcast_variables([v.value for v in model.variables], root_rank=0)
        hvd.broadcast_variables([v.value for v in opt.variables], root_rank=0)
    return value


model.build((None, 64))
opt.build(model.trainable_variables)
for batch, (x, y) in enumerate(dataset.take(30)):
    value = training_step(x, y, batch == 0)
print(f"\nRESULT {hvd.rank()} tapeloss {float(value)}", flush=True)
mean = hvd.allreduce(value, op=hvd.Average, name="mean")
print(f"\nRESULT {hvd.rank()} tapemean {float(mean)}", flush=True)
