"""A Keras optimizer of which each rank keeps the state of its own variables alone (ZeRO stage 1)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from hvdtrain.core.dropin import Owners, Settings, accumulator, lay_out
from hvdtrain.core.errors import SpecError, TrainingError
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.tensorflow.dropin.agreement import parameters_of
from hvdtrain.tensorflow.dropin.messages import broadcast_bytes

_Plain = Callable[..., Any]


class Elsewhere:
    """A variable of an optimizer that another rank has: like Keras', but for the value.

    The value is known until the next update: at the start, and where it was assigned, as by loading a file.

    Attributes:
        name: as the variable has on its rank.
        path: likewise.
        shape: likewise.
        dtype: likewise.
    """

    trainable = False

    def __init__(self, optimizer: Any, reference: Any, name: str, initializer: Any) -> None:
        """Stand in for a variable.

        Args:
            optimizer: that it is of.
            reference: the model's variable that it is like.
            name: what it holds of that, such as `momentum`.
            initializer: of its value, by Keras' name or itself.
        """
        self.name = f"{parameters_of([reference])[0].name.replace('/', '_')}_{name}"
        self.path = f"{optimizer.name}/{self.name}"
        self.shape, self.dtype = tuple(reference.shape), keras.backend.standardize_dtype(reference.dtype)
        self._optimizer = optimizer
        made = keras.initializers.get(initializer)
        self._value: Callable[[], Any] | None = lambda: made(self.shape, dtype=self.dtype)
        self._updates = self._count()

    @property
    def known(self) -> bool:
        """Whether this rank knows the value."""
        return self._value is not None and self._updates == self._count()

    def numpy(self) -> np.ndarray:
        """The value.

        Raises:
            TrainingError: another rank has changed it.
        """
        if self._value is None or not self.known:
            raise TrainingError(
                f"{self.path} is on another rank: with zero_stage=1 each has a part of the optimizer's "
                "state. Before a rank saves the model, call "
                "hvdtrain.keras.consolidate_optimizer_state(model.optimizer) on every rank. "
                "callbacks.Checkpoint and callbacks.BestModel do it themselves"
            )
        with tf.init_scope():
            return np.asarray(self._value())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """As `numpy`, in a dtype."""
        return np.array(self.numpy(), dtype)

    def assign(self, value: Any) -> None:
        """Keep a value until the next update.

        Args:
            value: of the variable's shape.
        """
        array = np.asarray(value)
        if array.shape != self.shape:
            raise ValueError(f"{self.path} has shape {self.shape} (found {array.shape})")
        self._value, self._updates = lambda: array, self._count()

    def forget(self) -> None:
        """Give the memory of the value back."""
        self._value = None

    def _count(self) -> int:
        with tf.init_scope():
            return int(self._optimizer.iterations.numpy())


class Sharding:
    """Which variables this rank updates, put into an optimizer that has no variables of its own yet.

    Clipping, decay and constraints are done by every rank for all variables, as without. In between each rank
    updates its own, and the others receive them.

    Attributes:
        prefix: of the names of collectives.
        slots: what the optimizer keeps of the model's variables, with the rank that has it; in their order.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, settings: Settings) -> None:
        """Take the optimizer's variables over.

        Args:
            optimizer: without loss scale.
            settings: the wrapper's arguments.

        Raises:
            SpecError: it has its variables already, or keeps something that every rank would need.
        """
        _check(optimizer)
        self._optimizer, self._settings, self.prefix = optimizer, settings, ""
        self.owners = Owners(hvd.size(), hvd.rank())
        self.slots: list[tuple[Any, int]] = []
        self._variables: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self._buckets: tuple[tuple[Bucket, str], ...] = ()
        for name, ours in (
            ("build", self._build),
            ("add_variable_from_reference", self._add),
            ("_backend_update_step", self._update),
        ):
            setattr(optimizer, name, functools.partial(ours, getattr(optimizer, name)))

    def consolidate(self, to: int) -> None:
        """Let one rank know all of the state until the next update; every rank calls it."""
        for slot, owner in self.slots:
            found = self._broadcast(slot, owner)
            if isinstance(slot, Elsewhere) and hvd.rank() == to:
                slot.assign(found)

    def broadcast(self, root_rank: int) -> None:
        """Take over one rank's state if it knows all of it, as after loading; every rank calls it."""
        known = all(slot.known for slot, _ in self.slots if isinstance(slot, Elsewhere))
        if broadcast_bytes(b"known" if known else b"-", root_rank) != b"known":
            return
        for slot, _ in self.slots:
            found = self._broadcast(slot, root_rank)
            if not isinstance(slot, Elsewhere):
                slot.assign(found)

    def forget(self) -> None:
        """Give the memory of other ranks' state back."""
        for slot, _ in self.slots:
            if isinstance(slot, Elsewhere):
                slot.forget()

    def _broadcast(self, slot: Any, rank: int) -> np.ndarray:
        message = broadcast_bytes(slot.numpy().tobytes() if hvd.rank() == rank else b"", rank)
        return np.frombuffer(message, tf.as_dtype(slot.dtype).as_numpy_dtype).reshape(slot.shape)

    def _build(self, plain: _Plain, variables: Sequence[Any]) -> None:
        if self._optimizer.built:
            plain(variables)
            return
        parameters = parameters_of(variables)
        self.owners.add(parameters)
        self._variables = {p.name: v for p, v in zip(parameters, variables, strict=True)}
        self._names = {id(v.handle): name for name, v in self._variables.items()}
        dtypes = {p.name: accumulator(p) for p in parameters}
        self._buckets = tuple((b, dtypes[b.weights[0].name]) for b in lay_out(parameters, self._settings))
        before = {id(v) for v in self._optimizer.variables}
        plain(variables)
        known = before.union(id(slot) for slot, _ in self.slots)
        for variable in self._optimizer.variables:
            if id(variable) not in known and len(variable.shape):
                raise SpecError(
                    f"zero_stage: {type(self._optimizer).__name__} keeps {variable.path}, which is not "
                    "like one of the model's variables: use zero_stage=0"
                )

    def _add(
        self, plain: _Plain, reference_variable: Any, name: Any = None, initializer: Any = "zeros"
    ) -> Any:
        owner = self.owners.of(self._names[id(reference_variable.handle)])
        if owner == self.owners.rank:
            slot = plain(reference_variable, name=name, initializer=initializer)
        else:
            slot = Elsewhere(self._optimizer, reference_variable, name or "var", initializer)
            self._optimizer._track_variable(slot)
        self.slots.append((slot, owner))
        return slot

    def _update(self, plain: _Plain, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        self.forget()
        pairs = zip(grads, trainable_variables, strict=True)
        own = [(g, v) for g, v in pairs if self.owners.owns(self._names[id(v.handle)])]
        plain([g for g, _ in own], [v for _, v in own], learning_rate)
        if self.owners.ranks > 1:
            for bucket, dtype in self._buckets:
                self._exchange(bucket, dtype)

    def _exchange(self, bucket: Bucket, dtype: str) -> None:
        sizes = {weight.name: weight.size for weight in bucket.weights}
        names = self.owners.in_order(sizes)
        own = [
            tf.cast(tf.reshape(tf.convert_to_tensor(self._variables[name]), [-1]), dtype)
            for name in names
            if self.owners.owns(name)
        ]
        whole = hvd.allgather(
            tf.concat([*own, tf.zeros((0,), dtype)], 0),
            name=f"{self.prefix}weights.bucket{bucket.index}",
            ignore_name_scope=True,
        )
        parts = tf.split(tf.ensure_shape(whole, (bucket.size,)), [sizes[name] for name in names])
        for name, part in zip(names, parts, strict=True):
            variable = self._variables[name]
            if not self.owners.owns(name):
                variable.assign(tf.cast(tf.reshape(part, variable.shape), variable.dtype))


@contextmanager
def whole_state(shardings: Sequence[Sharding]) -> Iterator[None]:
    """Rank 0 knows all of the state inside; every rank calls it."""
    for each in shardings:
        each.consolidate(0)
    try:
        yield
    finally:
        for each in shardings:
            each.forget()


def _check(optimizer: keras.optimizers.Optimizer) -> None:
    wrapper = "DistributedOptimizer: zero_stage"
    if optimizer.built:
        raise SpecError(
            f"{wrapper}: the optimizer has its variables already: wrap it before it is built by fit, apply "
            "or build; a saved model is loaded by hvdtrain.keras.load_model(path, zero_stage=1)"
        )
    if optimizer.use_ema:
        raise SpecError(
            f"{wrapper}: use_ema keeps an average of all variables on every rank: leave one of them out"
        )
    if optimizer.gradient_accumulation_steps:
        raise SpecError(
            f"{wrapper}: give gradient_accumulation_steps to DistributedOptimizer, and not to "
            f"{type(optimizer).__name__}"
        )
