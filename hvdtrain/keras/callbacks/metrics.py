"""Metrics over all ranks' samples."""

from __future__ import annotations

import warnings
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from hvdtrain.keras.callbacks.adding import adds_up, flat_metrics, own_variables
from hvdtrain.keras.callbacks.base import Callback
from hvdtrain.tensorflow.dropin.session import waiting_for_ranks

_Logs = dict[str, Any]
_TOLD = "_hvdtrain_own_metrics"


class MetricAverage(Callback):
    """Replaces each rank's metrics by those over all ranks' samples; put it before callbacks that read them.

    Not values are averaged: what metrics have summed up is summed over ranks (by each variable's
    `aggregation`, as Keras means it), so ragged batches and shares are exact, and counts such as those of AUC
    as well. A metric of your own that does not add up, such as one that keeps a maximum, stays each rank's,
    which is said once. A value that a training step of your own returns is taken for a mean over samples.
    """

    def __init__(self, device: str = "") -> None:
        """Nothing to choose.

        Args:
            device: accepted as Horovod's; it changes nothing.
        """
        super().__init__()
        del device
        self._training = False
        # Over all ranks: of this epoch's training, None until it is known, and of the last evaluation.
        self._trained: _Logs | None = None
        self._evaluated: _Logs = {}
        self._samples = 0.0

    def on_epoch_begin(self, epoch: int, logs: _Logs | None = None) -> None:
        """An epoch of training has begun."""
        self._training, self._trained, self._evaluated = True, None, {}

    def on_test_begin(self, logs: _Logs | None = None) -> None:
        """Inside `fit`, validation is about to forget what training has summed up."""
        if self._training:
            self._take_training()

    def on_test_end(self, logs: _Logs | None = None) -> None:
        """Sum an evaluation up. Keras has its own copy of the values: an epoch's end replaces them."""
        found = _over_states(self.model)
        self._evaluated = found | _weighted(logs or {}, found, _samples(self.model))

    def on_epoch_end(self, epoch: int, logs: _Logs | None = None) -> None:
        """Replace the epoch's values, for the callbacks behind this one and for the history."""
        self._training = False
        if logs is None:
            return
        found = self._trained if self._trained is not None else self._take_training()
        own = {name: value for name, value in logs.items() if not name.startswith("val_") and name != "lr"}
        found = found | _weighted(own, found, self._samples)
        found |= {f"val_{name}": value for name, value in self._evaluated.items()}
        logs.update({name: found[name] for name in logs if name in found})

    def _take_training(self) -> _Logs:
        self._trained, self._samples = _over_states(self.model), _samples(self.model)
        return self._trained


def _weighted(logs: _Logs, known: _Logs, samples: float) -> _Logs:
    """Means over ranks of what is not known from metrics, each rank's weighted by its samples."""
    others = sorted(name for name in logs if name not in known)
    if not others:
        return {}
    own = np.array([float(logs[name]) for name in others])
    *totals, weight = _sum(np.append(own * samples, samples)).tolist()
    return {name: total / weight for name, total in zip(others, totals, strict=True)}


def _over_states(model: keras.Model) -> _Logs:
    """The model's metrics as if one process had seen all samples; what does not add up is this rank's own."""
    states = [v for metric in _summed(model) for v in own_variables(metric)]
    own = [np.asarray(variable.numpy(), np.float64) for variable in states]
    if own:
        total = _sum(np.concatenate([array.reshape(-1) for array in own]))
        parts = np.split(total, np.cumsum([array.size for array in own])[:-1])
        for variable, array, part in zip(states, own, parts, strict=True):
            found = {"sum": part, "mean": part / hvd.size()}.get(variable.aggregation, array)
            variable.assign(np.reshape(found, array.shape))
    try:
        return {name: np.asarray(value).tolist() for name, value in model.get_metrics_result().items()}
    finally:
        for variable, array in zip(states, own, strict=True):
            variable.assign(array)


def _summed(model: keras.Model) -> list[keras.metrics.Metric]:
    metrics = [metric for metric in flat_metrics(model.metrics) if own_variables(metric)]
    left = [metric.name for metric in metrics if not adds_up(metric)]
    if left and hvd.rank() == 0 and getattr(model, _TOLD, None) != left:
        object.__setattr__(model, _TOLD, left)
        warnings.warn(
            f"MetricAverage: {', '.join(map(repr, left))}: each rank keeps its own value, so nothing that "
            "ranks must do alike may follow it. Ranks' variables can be added up only where update_state "
            "does nothing but v.assign_add(x) or v.assign(v + x), with x of the batch alone",
            stacklevel=2,
        )
    return [metric for metric in metrics if adds_up(metric)]


def _samples(model: keras.Model) -> float:
    tracker = getattr(model, "_loss_tracker", None)
    return float(tracker.count.numpy()) if tracker is not None and float(tracker.count.numpy()) else 1.0


def _sum(values: np.ndarray) -> np.ndarray:
    with waiting_for_ranks("metrics"):
        return hvd.allreduce(tf.constant(values), op=hvd.Sum, name="hvdtrain.metrics").numpy()
