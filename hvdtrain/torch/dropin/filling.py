"""Moving gradients from a user's backward into flat buckets."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.dropin import accumulator
from hvdtrain.core.errors import TrainingError
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.torch.dropin.agreement import facts
from hvdtrain.torch.dropin.session import waiting_for_ranks
from hvdtrain.torch.dropin.showing import Shown
from hvdtrain.torch.ops import Ops
from hvdtrain.torch.reducer import Reducer

# A use counts in the lower half of an int32, one with a sparse gradient in both.
SPARSE = 1 << 16
# By a parameter's id, because tensors compare element by element.
_hooks: dict[int, tuple[weakref.ref[torch.Tensor], list[Any], Filling]] = {}


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
        self._nodes: dict[str, Any] = {}
        self._shown = Shown()
        self._scale = 1.0
        # Whether a bucket is reduced as soon as each of its parameters has a gradient.
        self._overlaps = False
        # What `.grad` held before this window, and where it was a tensor outside its bucket.
        self._carried: dict[str, torch.Tensor] = {}
        self._theirs: set[str] = set()
        self._sparse: set[str] = set()
        # Parameters whose gradient is about to be accumulated.
        self._prepared: set[str] = set()
        # Those whose gradient the bucket alone has.
        self._hidden: set[str] = set()

    @property
    def watches(self) -> bool:
        """Whether any parameter is still this one's, and no later wrapper's."""
        return any(_hooks.get(id(p), (None,))[-1] is self for p in self._parameters.values())

    def _reached(self) -> None:
        """A gradient is about to arrive."""
        raise NotImplementedError

    def nest(self) -> None:
        """Hear that a parameter may have several gradients in one backward."""
        raise NotImplementedError

    def _final_scale(self) -> float:
        """What a bucket is multiplied with before it is reduced."""
        raise NotImplementedError

    def _add(self, bucket: Bucket, parameters: Mapping[str, torch.nn.Parameter], dtype: str) -> None:
        super()._add(bucket, parameters, dtype)
        self._shown.add(self._slots[-1])

    def _watch(self, slot: Any, name: str, place: torch.Tensor, parameter: torch.nn.Parameter) -> None:
        def before(gradients: Any) -> None:
            if gradients[0] is not None:
                self._prepare(slot, name, parameter)

        def after(parameter: torch.Tensor) -> None:
            if name not in self._prepared:
                self._watch_anew(slot, name, parameter, before)
            self._prepared.discard(name)
            self._take(slot, name, parameter.grad.detach())
            self._show_part(slot, name, parameter)
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
        _hooks[key] = weakref.ref(parameter, lambda _: _hooks.pop(key, None)), handles, self
        # PyTorch itself holds the node by a weak reference.
        self._nodes[name] = node

    def _prepare(self, slot: Any, name: str, parameter: torch.nn.Parameter) -> None:
        """Take what `.grad` holds out of PyTorch's way."""
        self._reached()
        if slot.work is not None:
            self.nest()
            raise TrainingError(
                f"parameter {name!r} has another gradient in the same backward, and its first one is on its "
                "way to the other ranks: a backward inside this one (a reentrant checkpoint, or a function "
                "whose backward runs another) shares parameters with it, and no update so far had one. Use "
                "checkpoint(..., use_reentrant=False), or have such a backward in the first update"
            )
        if name in slot.unfilled:
            self._keep(name)
        else:
            self._heed(slot, name)
        parameter.grad = None
        self._prepared.add(name)

    def _watch_anew(self, slot: Any, name: str, parameter: torch.Tensor, before: Any) -> None:
        """A conversion, such as `half().float()`, has given a parameter a new node, without our hook."""
        (fact,), place = facts({name: parameter}), slot.places[name]
        now = accumulator(fact), parameter.device, parameter.shape
        if now != (self._ops.dtype(place), place.device, place.shape):
            raise TrainingError(
                f"parameter {name!r} was converted after it was wrapped, and is {fact.dtype} of shape "
                f"{list(fact.shape)} on {parameter.device} now: convert and move the model first, then make "
                "its optimizer and call DistributedOptimizer"
            )
        if self._shown.is_ours(name, parameter.grad):
            raise TrainingError(
                f"parameter {name!r} was converted after it was wrapped, and its gradient has been added to "
                "what the conversion made of the last one: call zero_grad() after you convert a model"
            )
        node = torch._C._current_autograd_node()
        _hooks[id(parameter)][1].append(node.register_prehook(before))
        self._nodes[name] = node
        gradient, parameter.grad = parameter.grad, None
        self._prepare(slot, name, parameter)
        parameter.grad = gradient

    def _take(self, slot: Any, name: str, gradient: torch.Tensor) -> None:
        place = slot.places[name]
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

    def _show_part(self, slot: Any, name: str, parameter: torch.nn.Parameter) -> None:
        if slot.places[name].dtype != parameter.dtype and self._last_backward:
            # Whole in a moment.
            self._hidden.add(name)
            parameter.grad = None
        else:
            parameter.grad = self._shown.of(slot, name, parameter.dtype)

    def _arrived(self, slot: Any) -> None:
        if self._overlaps:
            super()._arrived(slot)

    def _heed(self, slot: Any, name: str) -> None:
        """Follow what the user has made of `.grad` since the last micro-batch."""
        held = self._parameters[name].grad
        if held is None:
            if name not in self._hidden:
                slot.unfilled.add(name)
                self._carried.pop(name, None)
                self._theirs.discard(name)
        elif not self._shown.is_current(name, held):
            slot.places[name].copy_(held.to_dense() if held.is_sparse else held)

    def _discarded(self) -> bool:
        """Whether the user has taken away, or set to zero, all that earlier micro-batches left in `.grad`."""
        for slot in self._slots:
            for name in slot.places.keys() - slot.unfilled:
                held = self._parameters[name].grad
                if held is not None and (self._shown.is_untouched(slot, name, held) or held.any()):
                    return False
        return True

    def _keep(self, name: str) -> None:
        held = self._parameters[name].grad
        if held is None:
            return
        if held is self._shown.view(name):
            self._carried[name] = held.clone()
        else:
            self._carried[name] = held
            self._theirs.add(name)

    def _start(self, slot: Any) -> None:
        for name in slot.places:
            if name not in slot.unfilled:
                self._heed(slot, name)
        for name in slot.unfilled:
            self._keep(name)
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
        return [used[name] * (1 + SPARSE * (name in self._sparse)) for name in self._parameters]

    @torch.no_grad()
    def _put(self, uses: Sequence[int], earlier: float, now: float) -> None:
        """Put what was reduced into `.grad`, added to what was there.

        Args:
            uses: what `_uses` gives, summed over ranks.
            earlier: factor of what was there.
            now: factor of what was reduced.
        """
        used = dict(zip(self._parameters, uses, strict=True))
        for slot in self._slots:
            self._shown.mend(slot)
            factor = earlier if slot.work is None else now
            if factor != 1.0:
                slot.flat.mul_(factor)
            for name in slot.places:
                parameter, carried = self._parameters[name], self._carried.get(name)
                if carried is not None and earlier != 1.0:
                    carried.mul_(earlier)
                if used[name]:
                    parameter.grad = self._whole(slot, name, used[name] >= SPARSE)
                # Used by no rank: `.grad` stays what it was, and optimizers skip None.
                elif carried is not None and parameter.grad is self._shown.view(name):
                    slot.places[name].copy_(carried)
        self._carried.clear()
        self._theirs.clear()

    def _whole(self, slot: Any, name: str, sparse: bool) -> torch.Tensor:
        gradient = self._shown.of(slot, name, self._parameters[name].dtype)
        carried = self._carried.get(name)
        if carried is not None:
            if name in self._theirs and not (sparse or carried.is_sparse):
                # As PyTorch, which adds in place.
                gradient = carried.add_(gradient)
            else:
                gradient += carried.to_dense() if carried.is_sparse else carried
        return self._shown.note(name, gradient.to_sparse(1) if sparse else gradient)

    def _forget(self) -> None:
        self._carried.clear()
        self._theirs.clear()
        self._sparse.clear()
        self._prepared.clear()
        self._hidden.clear()


def _unhook(parameter: torch.Tensor) -> None:
    """Take a parameter from the wrapper that watched it before: two would reduce its gradient twice."""
    watched, handles, _ = _hooks.get(id(parameter), (lambda: None, [], None))
    if watched() is parameter:
        for handle in handles:
            handle.remove()
