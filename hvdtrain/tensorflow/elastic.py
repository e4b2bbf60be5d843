"""Horovod's elastic names for Keras 3's models; in place of `horovod.tensorflow.elastic`.

State is committed, restored and shared as Horovod does it, in jobs whose ranks stay the same.
"""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import keras
from horovod.common.elastic import ObjectState
from horovod.tensorflow.elastic import TensorFlowState, run

from hvdtrain.core.dropin.elastic import refuse_elastic_job, refuse_sharded_state
from hvdtrain.core.errors import TrainingError
from hvdtrain.tensorflow.dropin.messages import broadcast_variables

__all__ = ["TensorFlowKerasState", "TensorFlowState", "run"]


class TensorFlowKerasState(ObjectState):  # type: ignore[misc]
    """A model's and its optimizer's variables, and any objects beside them."""

    def __init__(self, model: keras.Model, optimizer: Any = None, backend: Any = None, **others: Any) -> None:
        """Take what is to be kept; arguments are Horovod's.

        Args:
            model: built.
            optimizer: of Keras 3; the model's own by default.
            backend: accepted as Horovod's; it changes nothing.
            **others: any objects; they become attributes.

        Raises:
            TrainingError: the model has no variables yet, or the job is elastic and the optimizer is ours.
        """
        del backend
        self.model, self.optimizer = model, optimizer or model.optimizer
        if not model.built:
            raise TrainingError(
                "KerasState: the model has no variables yet: call model.build(input_shape) first"
            )
        engine = getattr(getattr(self.optimizer, "inner_optimizer", self.optimizer), "_hvdtrain", None)
        if engine is not None:
            refuse_elastic_job("KerasState", "keras")
            refuse_sharded_state("KerasState", engine.settings.zero_stage)
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(model.trainable_variables)
        self._keep()
        super().__init__(bcast_object=hvd.broadcast_object, get_rank=hvd.rank, **others)

    def save(self) -> None:
        """Keep all values as they are now."""
        self._keep()
        super().save()

    def restore(self) -> None:
        """Put back what was kept."""
        for variable, value in zip(self._variables(), self._kept, strict=True):
            variable.assign(value)
        super().restore()

    def sync(self) -> None:
        """Give every rank rank 0's values; every rank calls it."""
        broadcast_variables(self._variables(), root_rank=0)
        self._keep()
        super().sync()

    def _keep(self) -> None:
        self._kept = [variable.numpy() for variable in self._variables()]

    def _variables(self) -> list[Any]:
        return [*self.model.variables, *(self.optimizer.variables if self.optimizer is not None else ())]
