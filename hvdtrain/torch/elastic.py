"""Horovod's elastic names for loops whose optimizer is ours; in place of `horovod.torch.elastic`.

State is committed, restored and shared as Horovod does it, in jobs whose ranks stay the same.
"""

from __future__ import annotations

from typing import Any

from horovod.torch import elastic as horovods
from horovod.torch.elastic import ElasticSampler, run
from horovod.torch.elastic.state import OptimizerStateHandler

from hvdtrain.core.dropin.elastic import refuse_elastic_job, refuse_sharded_state
from hvdtrain.torch.dropin.state import broadcast_optimizer_state

__all__ = ["ElasticSampler", "TorchState", "run"]


class TorchState(horovods.TorchState):  # type: ignore[misc]
    """Horovod's, for optimizers that `hvdtrain.torch.DistributedOptimizer` has wrapped as well."""

    def __init__(self, model: Any = None, optimizer: Any = None, **others: Any) -> None:
        """Take what is to be kept; arguments are Horovod's.

        Args:
            model: a module.
            optimizer: wrapped or not.
            **others: more of them, samplers, or any objects; all become attributes.

        Raises:
            TrainingError: the job is elastic and an optimizer is ours.
        """
        super().__init__(model=model, optimizer=optimizer, **others)
        for name, handler in self._handlers.items():
            if isinstance(handler, OptimizerStateHandler):
                if hasattr(handler.value, "_gradients"):
                    refuse_elastic_job("TorchState", "torch")
                    refuse_sharded_state("TorchState", handler.value._gradients.settings.zero_stage)
                self._handlers[name] = _Optimizer(handler.value)


class _Optimizer(OptimizerStateHandler):  # type: ignore[misc]
    def restore(self) -> None:
        # Also forgets a window that was not complete.
        self.value.zero_grad()
        super().restore()

    def sync(self) -> None:
        # Horovod's steps a new optimizer to make its state.
        broadcast_optimizer_state(self.value, root_rank=0)
        self.save()
