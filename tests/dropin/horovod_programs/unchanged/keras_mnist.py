"""A convolutional network by `compile` and `fit`, checkpoints in HDF5: Horovod's shortest Keras program."""

import math

import horovod.keras as hvd
import keras
import numpy as np
import tensorflow as tf
from keras import backend as K
from keras.layers import Conv2D, Dense, Dropout, Flatten, MaxPooling2D
from keras.models import Sequential
from sklearn.datasets import load_digits

# Horovod: initialize Horovod.
hvd.init()

# Horovod: pin GPU to be used to process local rank (one GPU per process)
gpus = tf.config.experimental.list_physical_devices("GPU")
for gpu in gpus:
    tf.config.experimental.set_memory_growth(gpu, True)
if gpus:
    tf.config.experimental.set_visible_devices(gpus[hvd.local_rank()], "GPU")

batch_size = 32
num_classes = 10
epochs = int(math.ceil(4.0 / hvd.size()))
digits = load_digits()
x_train, y_train = digits.images[:1024] / 16, digits.target[:1024]
x_test, y_test = digits.images[1024:1280] / 16, digits.target[1024:1280]
if K.image_data_format() == "channels_first":
    shape = (1, 8, 8)
else:
    shape = (8, 8, 1)
x_train = x_train.reshape(-1, *shape).astype("float32")
x_test = x_test.reshape(-1, *shape).astype("float32")
y_train = keras.utils.to_categorical(y_train, num_classes)
y_test = keras.utils.to_categorical(y_test, num_classes)

model = Sequential()
model.add(Conv2D(8, kernel_size=(3, 3), activation="relu", input_shape=shape))
model.add(MaxPooling2D(pool_size=(2, 2)))
model.add(Dropout(0.25))
model.add(Flatten())
model.add(Dense(32, activation="relu"))
model.add(Dense(num_classes, activation="softmax"))

# Horovod: adjust learning rate based on number of GPUs.
opt = keras.optimizers.Adadelta(1.0 * hvd.size())
# Horovod: add Horovod Distributed Optimizer.
opt = hvd.DistributedOptimizer(opt)
model.compile(
    loss=keras.losses.categorical_crossentropy,
    optimizer=opt,
    metrics=["accuracy"],
    experimental_run_tf_function=False,
)
callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0)]
if hvd.rank() == 0:
    callbacks.append(keras.callbacks.ModelCheckpoint("./mnist-{epoch}.h5"))
history = model.fit(
    x_train,
    y_train,
    batch_size=batch_size,
    callbacks=callbacks,
    epochs=epochs,
    verbose=1 if hvd.rank() == 0 else 0,
    validation_data=(x_test, y_test),
)
score = model.evaluate(x_test, y_test, verbose=0)
print(f"\nRESULT {hvd.rank()} mnist_first {history.history['loss'][0]}", flush=True)
print(f"\nRESULT {hvd.rank()} mnist_last {history.history['loss'][-1]}", flush=True)
print(f"\nRESULT {hvd.rank()} mnist_accuracy {score[1]}", flush=True)
weights = sum(float(np.abs(w).astype("float64").sum()) for w in model.get_weights())
print(f"\nRESULT {hvd.rank()} mnist_weights {weights!r}", flush=True)
