"""Moving gradients from a user's backward into flat buckets, and showing them in `.grad`."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from hvdtrain.core.compression.rules import Rules
from hvdtrain.torch.dropin.session import waiting_for_ranks
from hvdtrain.torch.ops import Ops
from hvdtrain.torch.reducer import Reducer

# A use counts in the lower half of an int32, one with a sparse gradient in both.
_SPARSE = 1 << 16
# By a parameter's id, because tensors compare element by element.
_hooks: dict[int, tuple[weakref.ref[torch.Tensor], list[Any]]] = {}


class Filling(Reducer):
    """A reducer whose backward is the user's; when a window begins and ends is decided below it."""

    def __init__(self, rules: Rules, prefix: str, process_set: Any) -> None:
        """Start without parameters.

        Args:
            rules: how each bucket is summed over ranks.
            prefix: of the names of collectives.
            process_set: the ranks that it is summed over.
        """
        super().__init__(rules, (), {}, seed=0, prefix=prefix)
        self._process_set = process_set
        self._ops = Ops(process_set.size(), process_set.rank(), seed=0)
        self._parameters: dict[str, torch.nn.Parameter] = {}
        self._nodes: list[Any] = []
        self._scale = 1.0
        # What `.grad` held before this window.
        self._carried: dict[str, torch.Tensor] = {}
        self._sparse: set[str] = set()

    def _reached(self) -> None:
        """A gradient is about to arrive."""
        raise NotImplementedError

    def _final_scale(self) -> float:
        """What a bucket is multiplied with before it is reduced."""
        raise NotImplementedError

    def _watch(self, slot: Any, name: str, place: torch.Tensor, parameter: torch.nn.Parameter) -> None:
        def before(gradients: Any) -> None:
            if gradients[0] is None:
                return
            self._reached()
            if name in slot.unfilled:
                self._keep(name, place)
            elif self._zeroed(slot, name):
                slot.unfilled.add(name)
            parameter.grad = None

        def after(parameter: torch.Tensor) -> None:
            self._take(slot, name, place, parameter.grad.detach())
            parameter.grad = place if place.dtype == parameter.dtype else None
            self._arrived(slot)

        trainable = parameter.requires_grad
        # A frozen parameter may be thawed later; hooks stay on it, but none can be put on it while frozen.
        parameter.requires_grad_(True)
        with torch.enable_grad():
            node = parameter.view_as(parameter).grad_fn.next_functions[0][0]
        _unhook(parameter)
        # Before the gradient is accumulated; a tensor's hook would also run for torch.autograd.grad.
        handles = [node.register_prehook(before), parameter.register_post_accumulate_grad_hook(after)]
        parameter.requires_grad_(trainable)
        key = id(parameter)
        _hooks[key] = weakref.ref(parameter, lambda _: _hooks.pop(key, None)), handles
        # PyTorch itself holds the node by a weak reference.
        self._nodes.append(node)

    def _take(self, slot: Any, name: str, place: torch.Tensor, gradient: torch.Tensor) -> None:
        if gradient.is_sparse:
            self._sparse.add(name)
            gradient = gradient.to_dense()
        if name not in slot.unfilled:
            place.add_(gradient, alpha=self._scale)
            return
        slot.unfilled.remove(name)
        if gradient.dtype == place.dtype and self._scale != 1.0:
            torch.mul(gradient, self._scale, out=place)
        else:
            # 16 bits are widened first: scaled as they are, small ones would be lost.
            place.copy_(gradient)
            if self._scale != 1.0:
                place.mul_(self._scale)

    def _zeroed(self, slot: Any, name: str) -> bool:
        """Whether the model's `zero_grad` has taken away what earlier micro-batches left."""
        parameter = self._parameters[name]
        shown = slot.places[name].dtype == parameter.dtype
        return shown and parameter.grad is None and name not in slot.unfilled

    def _keep(self, name: str, place: torch.Tensor) -> None:
        held = self._parameters[name].grad
        if held is not None:
            self._carried[name] = held.clone() if held is place else held

    def _start(self, slot: Any) -> None:
        for name in slot.unfilled:
            self._keep(name, slot.places[name])
        slot.unfilled |= {name for name in slot.places if self._zeroed(slot, name)}
        scale = self._final_scale()
        if scale != 1.0:
            slot.flat.mul_(scale)
        super()._start(slot)

    def _resume(self, work: Any, reply: Any) -> None:
        with waiting_for_ranks("gradients"):
            super()._resume(work, reply)

    def _reply(self, work: Any) -> torch.Tensor:
        with waiting_for_ranks("gradients"):
            return super()._reply(work)

    def _uses(self) -> list[int]:
        """Of each parameter, whether this rank's window has a gradient of it, and whether a sparse one."""
        used = Counter([*self._parameters])
        for slot in self._slots:
            used.subtract(slot.unfilled)
        return [used[name] * (1 + _SPARSE * (name in self._sparse)) for name in self._parameters]

    def _show(self, uses: Sequence[int]) -> None:
        """Put what was reduced into `.grad`, added to what was there; `uses` are summed over ranks."""
        used = dict(zip(self._parameters, uses, strict=True))
        for slot in self._slots:
            for name, place in slot.places.items():
                parameter = self._parameters[name]
                if used[name]:
                    parameter.grad = self._whole(name, place, used[name] >= _SPARSE)
                # Used by no rank: `.grad` stays what it was, and optimizers skip None.
                elif parameter.grad is place and name in self._carried:
                    place.copy_(self._carried[name])
        self._carried.clear()

    def _whole(self, name: str, place: torch.Tensor, sparse: bool) -> torch.Tensor:
        gradient = place.to(self._parameters[name].dtype)
        carried = self._carried.get(name)
        if carried is not None:
            gradient += carried.to_dense() if carried.is_sparse else carried
        return gradient.to_sparse(1) if sparse else gradient

    def _forget(self) -> None:
        self._carried.clear()
        self._sparse.clear()


def _unhook(parameter: torch.Tensor) -> None:
    """Take a parameter from the wrapper that watched it before: two would reduce its gradient twice."""
    watched, handles = _hooks.get(id(parameter), (lambda: None, []))
    if watched() is parameter:
        for handle in handles:
            handle.remove()
