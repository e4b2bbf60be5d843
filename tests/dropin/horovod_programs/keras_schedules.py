"""A warm-up, a staircase of learning rates and accumulation: Horovod's ImageNet example, on digits."""

import horovod.keras as hvd
import keras
from sklearn.datasets import load_digits

hvd.init()
keras.utils.set_random_seed(3 + hvd.rank())
images, labels = load_digits(return_X_y=True)
train, rest = slice(hvd.rank(), 512, hvd.size()), slice(512 + hvd.rank(), None, hvd.size())
hidden = keras.layers.Dense(24, activation="tanh")
model = keras.Sequential([keras.Input((64,)), hidden, keras.layers.Dense(10)])
initial_lr = 0.05 * hvd.size()
opt = hvd.DistributedOptimizer(
    keras.optimizers.SGD(initial_lr, momentum=0.9),
    backward_passes_per_step=2,
    average_aggregated_gradients=True,
    compression=hvd.Compression.fp16,
)
model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), optimizer=opt)
callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(root_rank=0),
    hvd.callbacks.MetricAverageCallback(),
    hvd.callbacks.LearningRateWarmupCallback(initial_lr=initial_lr, warmup_epochs=2, verbose=1),
    hvd.callbacks.LearningRateScheduleCallback(initial_lr, multiplier=1.0, start_epoch=2, end_epoch=3),
    hvd.callbacks.LearningRateScheduleCallback(initial_lr, multiplier=lambda epoch: 0.1, start_epoch=3),
    keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=9, verbose=0),
]
history = model.fit(
    images[train] / 16, labels[train], batch_size=16, epochs=4, shuffle=False, callbacks=callbacks, verbose=0
).history
score = model.evaluate(images[rest] / 16, labels[rest], verbose=0)
print(f"\nRESULT {hvd.rank()} first {history['loss'][0]}", flush=True)
print(f"\nRESULT {hvd.rank()} last {history['loss'][-1]}", flush=True)
print(f"\nRESULT {hvd.rank()} warm {history['lr'][1]}", flush=True)
print(f"\nRESULT {hvd.rank()} rate {history['lr'][-1]}", flush=True)
print(f"\nRESULT {hvd.rank()} score {hvd.allreduce(score, name='score')}", flush=True)
