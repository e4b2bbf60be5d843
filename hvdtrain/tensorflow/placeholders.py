"""Variables that hold no memory: their values are somewhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf


@contextmanager
def without_memory() -> Iterator[None]:
    """Variables to be trained that are made here have a shape and a dtype, and no values.

    Nothing can be computed with one: its value has no elements, which fits no other array.
    """

    def create(make: Callable[..., tf.Variable], **arguments: Any) -> tf.Variable:
        variable = make(**arguments)
        if variable.trainable:
            # One by one, so that there are never the values of two. The operation asks for no shape.
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=tf.zeros((0,), variable.dtype))
        return variable

    with tf.variable_creator_scope(create):
        yield
