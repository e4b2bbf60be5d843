"""Copies of a wrapped optimizer: by `copy.deepcopy`, by pickle, by `torch.save`."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd

from hvdtrain.core.errors import TrainingError


class Copyable:
    """An optimizer with a class of ours in front of its own, as `extend` makes it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies have the state and the options, and nothing of the wrapper: it hangs on the parameters."""
        return _new_copy, (own_class(self),), self.__getstate__()


class Copy(Copyable):
    """A copy of a wrapped optimizer, until it is wrapped itself."""

    def step(self, *arguments: Any, **options: Any) -> Any:
        """As the optimizer's own, in a process alone.

        Raises:
            TrainingError: there are other ranks, and its gradients would not be theirs.
        """
        if hvd.is_initialized() and hvd.size() > 1:
            raise TrainingError(
                "this optimizer is a copy (copy.deepcopy, pickle or torch.save) of a distributed one, and is "
                "not distributed itself: wrap it by DistributedOptimizer, with the parameters of its model"
            )
        return super().step(*arguments, **options)  # type: ignore[misc]

    # PyTorch would wrap it for profiling and for step hooks, which the optimizer's own step has been already.
    step.hooked = True  # type: ignore[attr-defined]


def own_class(optimizer: Any) -> Any:
    """The class that the user's program knows."""
    return getattr(optimizer, "_own_class", type(optimizer))


def extend(kind: Any, front: type[Copyable]) -> Any:
    """A class of the name of `kind`, with `front` before it."""
    return type(kind.__name__, (front, kind), {"__module__": kind.__module__, "_own_class": kind})


def _new_copy(kind: Any) -> Any:
    made = extend(kind, Copy)
    return made.__new__(made)
