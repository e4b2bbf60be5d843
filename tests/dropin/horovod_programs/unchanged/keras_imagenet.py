"""Images from folders, weight decay by the model's configuration, a run that goes on from a checkpoint."""

import argparse
import os
from pathlib import Path

import horovod.keras as hvd
import keras
import numpy as np
from keras.preprocessing import image
from sklearn.datasets import load_digits

parser = argparse.ArgumentParser()
parser.add_argument("--train-dir", default="./train")
parser.add_argument("--checkpoint-format", default="./imagenet-{epoch}.h5")
parser.add_argument("--fp16-allreduce", action="store_true")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--warmup-epochs", type=float, default=1)
parser.add_argument("--wd", type=float, default=0.00005)
args, _ = parser.parse_known_args()

hvd.init()
if hvd.rank() == 0 and not os.path.exists(args.train_dir):
    digits = load_digits()
    for i, (picture, label) in enumerate(zip(digits.images[:320], digits.target[:320])):
        folder = Path(args.train_dir) / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(folder / f"{i}.png", picture[..., None], scale=True)
hvd.allreduce(0, name="pictures are there")

# If set > 0, will resume training from a given checkpoint.
resume_from_epoch = 0
for try_epoch in range(args.epochs, 0, -1):
    if os.path.exists(args.checkpoint_format.format(epoch=try_epoch)):
        resume_from_epoch = try_epoch
        break
# Horovod: broadcast resume_from_epoch from rank 0 to other workers.
resume_from_epoch = hvd.broadcast(resume_from_epoch, 0, name="resume_from_epoch")
verbose = 1 if hvd.rank() == 0 else 0

train_gen = image.ImageDataGenerator(width_shift_range=0.1, zoom_range=0.1, rescale=1 / 255)
train_iter = train_gen.flow_from_directory(
    args.train_dir, batch_size=16, target_size=(8, 8), color_mode="grayscale"
)
test_gen = image.ImageDataGenerator(rescale=1 / 255)
test_iter = test_gen.flow_from_directory(
    args.train_dir, batch_size=16, target_size=(8, 8), color_mode="grayscale"
)

inputs = keras.layers.Input((8, 8, 1))
x = keras.layers.Conv2D(8, 3, padding="same")(inputs)
x = keras.layers.BatchNormalization()(x)
x = keras.layers.Activation("relu")(x)
x = keras.layers.Flatten()(x)
model = keras.models.Model(inputs, keras.layers.Dense(10, activation="softmax")(x))

compression = hvd.Compression.fp16 if args.fp16_allreduce else hvd.Compression.none
initial_lr = 0.05 * hvd.size()
# Restore from a previous checkpoint, if initial_epoch is specified.
# Horovod: restore on the first worker which will broadcast both model and optimizer weights to other workers.
if resume_from_epoch > 0 and hvd.rank() == 0:
    model = hvd.load_model(args.checkpoint_format.format(epoch=resume_from_epoch), compression=compression)
else:
    # Weight decay is not part of the model: put it into its configuration.
    model_config = model.get_config()
    for layer, layer_config in zip(model.layers, model_config["layers"]):
        if hasattr(layer, "kernel_regularizer"):
            regularizer = keras.regularizers.l2(args.wd)
            layer_config["config"]["kernel_regularizer"] = {
                "class_name": regularizer.__class__.__name__,
                "config": regularizer.get_config(),
            }
        if type(layer) == keras.layers.BatchNormalization:
            layer_config["config"]["momentum"] = 0.9
            layer_config["config"]["epsilon"] = 1e-5
    model = keras.models.Model.from_config(model_config)
    opt = keras.optimizers.SGD(lr=initial_lr, momentum=0.9)
    # Horovod: add Horovod Distributed Optimizer.
    opt = hvd.DistributedOptimizer(opt, compression=compression)
    model.compile(
        loss=keras.losses.categorical_crossentropy,
        optimizer=opt,
        metrics=["accuracy", "top_k_categorical_accuracy"],
        experimental_run_tf_function=False,
    )

callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    hvd.callbacks.MetricAverageCallback(),
    hvd.callbacks.LearningRateWarmupCallback(
        initial_lr=initial_lr, warmup_epochs=args.warmup_epochs, verbose=verbose
    ),
    hvd.callbacks.LearningRateScheduleCallback(
        initial_lr=initial_lr, multiplier=1.0, start_epoch=args.warmup_epochs, end_epoch=3
    ),
    hvd.callbacks.LearningRateScheduleCallback(
        initial_lr=initial_lr, multiplier=1e-1, start_epoch=3, end_epoch=60
    ),
]
# Horovod: save checkpoints only on the first worker to prevent other workers from corrupting them.
if hvd.rank() == 0:
    callbacks.append(keras.callbacks.ModelCheckpoint(args.checkpoint_format))
    callbacks.append(keras.callbacks.TensorBoard("./logs"))

history = model.fit(
    train_iter,
    steps_per_epoch=len(train_iter) // hvd.size(),
    callbacks=callbacks,
    epochs=args.epochs,
    verbose=verbose,
    workers=4,
    initial_epoch=resume_from_epoch,
    validation_data=test_iter,
    validation_steps=3 * len(test_iter) // hvd.size(),
)
# Horovod: evaluate the model on a share of the data, and average.
score = hvd.allreduce(model.evaluate(test_iter, steps=len(test_iter), workers=4))
if verbose:
    print("Test loss:", score[0])
print(f"\nRESULT {hvd.rank()} imagenet{args.epochs}_epochs {len(history.history['loss'])}", flush=True)
print(f"\nRESULT {hvd.rank()} imagenet{args.epochs}_loss {history.history['loss'][-1]}", flush=True)
print(f"\nRESULT {hvd.rank()} imagenet{args.epochs}_steps {int(model.optimizer.iterations)}", flush=True)
print(f"\nRESULT {hvd.rank()} imagenet{args.epochs}_score {float(score[1])}", flush=True)
weights = sum(float(np.abs(w.numpy()).astype("float64").sum()) for w in model.trainable_weights)
print(f"\nRESULT {hvd.rank()} imagenet{args.epochs}_weights {weights!r}", flush=True)
