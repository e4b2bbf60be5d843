"""`hvdtrain.tensorflow.dataset` on real ranks: in loops, in compiled loops and in `fit`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

import hvdtrain.keras as hvd
from hvdtrain.core.data import epoch_order
from hvdtrain.core.errors import SpecError
from hvdtrain.keras import callbacks
from hvdtrain.tensorflow import dataset
from tests.dropin import keras_cases as cases
from tests.dropin.keras_misuse import raises


class Rows:
    """Samples of which the first input says which one it is."""

    def __init__(self, count: int = 21) -> None:
        draw = np.random.default_rng(2)
        self.x = draw.normal(size=(count, cases.FEATURES))
        self.x[:, 0] = np.arange(count)
        self.y = draw.integers(cases.CLASSES, size=count)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        return self.x[index], self.y[index]


def rows(batch: Any) -> list[int]:
    return [int(i) for i in np.asarray(batch[0])[:, 0]]


def check_batches_are_global_batches_of_the_order() -> None:
    given = dataset(Rows(), 8, seed=3)
    assert isinstance(given, tf.data.Dataset)
    assert len(given) == 3
    for epoch in range(2):
        order, start = epoch_order(3, epoch, 21).tolist(), 0
        for batch in given:
            found = [i for each in hvd.allgather_object(rows(batch)) for i in each]
            assert found == order[start : start + 8]
            start += len(found)
            # What is made ahead is not consumed.
            assert given.state_dict() == {"samples_consumed": 21 * epoch + start}
        assert given.epoch == epoch + 1


def check_a_dataset_goes_on_in_the_middle_of_an_epoch() -> None:
    first = dataset(Rows(), 8, seed=3)
    whole = [rows(batch) for _ in range(2) for batch in first]
    for stop in (1, 2, 4):
        first, second = dataset(Rows(), 8, seed=3), dataset(Rows(), 8, seed=3, prefetch=0)
        found: list[list[int]] = []
        while len(found) < stop:
            for batch in first:
                found.append(rows(batch))
                if len(found) == stop:
                    break
        second.load_state_dict(first.state_dict())
        assert found + [rows(batch) for _ in range(second.epoch, 2) for batch in second] == whole


def check_a_compiled_loop_counts_as_well() -> None:
    given = dataset(Rows(), 8, seed=3).map(lambda x, y: (x + 0.0, y))
    source = dataset(Rows(), 8, seed=3)

    @tf.function
    def all_of(batches: tf.data.Dataset) -> tf.Tensor:
        total = tf.constant(0, tf.int64)
        for _, y in batches:
            total += tf.size(y, tf.int64)
        return total

    assert int(all_of(source)) == sum(len(rows(batch)) for batch in given)
    assert source.state_dict() == {"samples_consumed": 21}


def check_structures_and_collate() -> None:
    samples = [{"x": np.full(i % 3, i, np.float32), "y": i} for i in range(8)]

    def pad(items: list[Any]) -> dict[str, np.ndarray]:
        width = max(len(each["x"]) for each in items)
        x = np.stack([np.pad(each["x"], (0, width - len(each["x"]))) for each in items])
        return {"x": x, "y": np.array([each["y"] for each in items])}

    given = dataset(samples, 4, collate_fn=pad, shuffle=False)
    assert given.element_spec["x"].shape.as_list() == [None, None]
    assert [batch["y"].numpy().tolist() for batch in given] == [
        [start + 2 * hvd.rank() + i for i in range(2)] for start in (0, 4)
    ]
    plain = dataset([{"y": (i, [i, i])} for i in range(8)], 4, shuffle=False)
    (first, _) = plain
    assert [each.shape.as_list() for each in first["y"]] == [[2], [2, 2]]


def check_fit_uses_each_batch_once() -> None:
    seen: list[list[int]] = []

    class Seen(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append([given.state_dict()["samples_consumed"]])

    given = dataset(Rows(), 8, seed=3)
    model = cases.model()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.0), average="samples")
    model.compile(optimizer, loss=cases.loss())
    told = [callbacks.BroadcastGlobalVariables(0), Seen()]
    history = model.fit(given, epochs=2, verbose=0, callbacks=told).history
    assert seen == [[8], [16], [21], [29], [37], [42]]
    assert len(history["loss"]) == 2


def check_what_leaves_a_rank_without_samples_is_told() -> None:
    with raises(SpecError, "the last global batch of an epoch has 1 sample(s)"):
        dataset(Rows(), 10)
    assert len(dataset(Rows(), 10, drop_last=True)) == 2
