"""Augmented images from generators, a warm-up, metrics of all ranks, a rate set by backend functions."""

from __future__ import print_function

import horovod.keras as hvd
import keras
import numpy as np
from keras import backend as K
from keras.preprocessing.image import ImageDataGenerator
from sklearn.datasets import load_digits

hvd.init()


class Halve(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            rate = K.get_value(self.model.optimizer.lr)
            K.set_value(self.model.optimizer.lr, rate / 2)


batch_size, epochs = 32, 4
digits = load_digits()
images = (digits.images / 16).reshape(-1, 8, 8, 1).astype("float32")
labels = keras.utils.to_categorical(digits.target, 10)
x_train, y_train, x_test, y_test = images[:1024], labels[:1024], images[1024:1344], labels[1024:1344]
train_batches, test_batches = len(x_train) // batch_size, len(x_test) // batch_size

model = keras.models.Sequential(
    [
        keras.layers.Conv2D(8, (3, 3), activation="relu", input_shape=(8, 8, 1)),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
scaled_lr = 0.1 * hvd.size()
opt = keras.optimizers.SGD(lr=scaled_lr, momentum=0.9, decay=0.0)
opt = hvd.DistributedOptimizer(opt, compression=hvd.Compression.fp16)
model.compile(
    loss="categorical_crossentropy", optimizer=opt, metrics=["accuracy"], experimental_run_tf_function=False
)

callbacks = [
    # Horovod: broadcast initial variable states from rank 0 to all other processes.
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    # Horovod: average metrics among workers at the end of every epoch.
    hvd.callbacks.MetricAverageCallback(),
    # Horovod: using `lr = 1.0 * hvd.size()` from the very beginning leads to worse final accuracy.
    hvd.callbacks.LearningRateWarmupCallback(initial_lr=scaled_lr, warmup_epochs=3, verbose=1),
    # Reduce the learning rate if training plateaues.
    keras.callbacks.ReduceLROnPlateau(patience=10, verbose=1),
    Halve(),
]
if hvd.rank() == 0:
    callbacks.append(keras.callbacks.ModelCheckpoint("./advanced-{epoch}.h5"))

train_gen = ImageDataGenerator(
    width_shift_range=0.08, shear_range=0.1, height_shift_range=0.08, zoom_range=0.05
)
test_gen = ImageDataGenerator()
history = model.fit_generator(
    train_gen.flow(x_train, y_train, batch_size=batch_size),
    steps_per_epoch=train_batches // hvd.size(),
    callbacks=callbacks,
    epochs=epochs,
    verbose=1 if hvd.rank() == 0 else 0,
    validation_data=test_gen.flow(x_test, y_test, batch_size=batch_size),
    validation_steps=3 * test_batches // hvd.size(),
)
score = model.evaluate_generator(
    test_gen.flow(x_test, y_test, batch_size=batch_size), test_batches, workers=4
)
score = hvd.allreduce(score, name="score")
model.save_weights("./advanced-%d.h5" % hvd.rank())
before = model.get_weights()
model.set_weights([np.zeros_like(w) for w in before])
model.load_weights("./advanced-%d.h5" % hvd.rank())
restored = max(float(np.abs(a - b).max()) for a, b in zip(before, model.get_weights()))
rate = K.get_value(model.optimizer.lr)
print(f"\nRESULT {hvd.rank()} advanced_first {history.history['loss'][0]}", flush=True)
print(f"\nRESULT {hvd.rank()} advanced_last {history.history['loss'][-1]}", flush=True)
print(f"\nRESULT {hvd.rank()} advanced_accuracy {float(score[1])}", flush=True)
print(f"\nRESULT {hvd.rank()} advanced_restored {restored}", flush=True)
print(f"\nRESULT {hvd.rank()} advanced_rate {rate}", flush=True)
# Batch normalisation learns from each rank's own batches.
weights = sum(float(np.abs(w.numpy()).astype("float64").sum()) for w in model.trainable_weights)
print(f"\nRESULT {hvd.rank()} advanced_weights {weights!r}", flush=True)
