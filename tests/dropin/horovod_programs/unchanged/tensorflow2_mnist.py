"""A training step of one's own under tf.function, variables broadcast after the first batch, a checkpoint."""

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

hvd.init()
gpus = tf.config.experimental.list_physical_devices("GPU")
for gpu in gpus:
    tf.config.experimental.set_memory_growth(gpu, True)
if gpus:
    tf.config.experimental.set_visible_devices(gpus[hvd.local_rank()], "GPU")

digits = load_digits()
dataset = tf.data.Dataset.from_tensor_slices(
    (tf.cast(digits.images[..., tf.newaxis] / 16.0, tf.float32), tf.cast(digits.target, tf.int64))
)
dataset = dataset.repeat().shuffle(1000).batch(32)

mnist_model = tf.keras.Sequential(
    [
        tf.keras.layers.Conv2D(8, [3, 3], activation="relu"),
        tf.keras.layers.MaxPooling2D(pool_size=(2, 2)),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(10, activation="softmax"),
    ]
)
loss = tf.losses.SparseCategoricalCrossentropy()
# Horovod: adjust learning rate based on number of GPUs.
opt = tf.optimizers.legacy.Adam(0.003 * hvd.size())
checkpoint_dir = "./checkpoints-%d" % hvd.rank()
checkpoint = tf.train.Checkpoint(model=mnist_model, optimizer=opt)


@tf.function
def training_step(images, labels, first_batch):
    with tf.GradientTape() as tape:
        probs = mnist_model(images, training=True)
        loss_value = loss(labels, probs)

    # Horovod: add Horovod Distributed GradientTape.
    tape = hvd.DistributedGradientTape(tape)
    grads = tape.gradient(loss_value, mnist_model.trainable_variables)
    opt.apply_gradients(zip(grads, mnist_model.trainable_variables))

    # Horovod: broadcast initial variable states from rank 0 to all other processes, after the first step, so
    # that optimizer variables are there.
    if first_batch:
        hvd.broadcast_variables(mnist_model.variables, root_rank=0)
        hvd.broadcast_variables(opt.variables(), root_rank=0)
    return loss_value


first = last = 0.0
# Horovod: adjust number of steps based on number of GPUs.
for batch, (images, labels) in enumerate(dataset.take(80 // hvd.size())):
    loss_value = training_step(images, labels, batch == 0)
    first = first or float(loss_value)
    last = float(loss_value)
    if batch % 10 == 0 and hvd.local_rank() == 0:
        print("Step #%d\tLoss: %.6f" % (batch, loss_value))
# Horovod: save checkpoints only on worker 0 to prevent other workers from corrupting it.
if hvd.rank() == 0:
    checkpoint.save(checkpoint_dir)
print(
    f"\nRESULT {hvd.rank()} loop_first {float(hvd.allreduce(tf.constant(first), name='first'))}", flush=True
)
print(f"\nRESULT {hvd.rank()} loop_last {float(hvd.allreduce(tf.constant(last), name='last'))}", flush=True)
weights = sum(float(np.abs(v.numpy()).astype("float64").sum()) for v in mnist_model.variables)
state = sum(float(np.abs(v.numpy()).astype("float64").sum()) for v in opt.variables())
print(f"\nRESULT {hvd.rank()} loop_weights {weights!r}", flush=True)
print(f"\nRESULT {hvd.rank()} loop_state {state!r}", flush=True)
