"""A user's optimizer of which each rank keeps the state of its own parameters alone (ZeRO stage 1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import horovod.torch as hvd
import torch

from hvdtrain.core.dropin import Owners
from hvdtrain.core.errors import SpecError, TrainingError
from hvdtrain.torch.buckets import GradBucket
from hvdtrain.torch.dropin.agreement import facts
from hvdtrain.torch.dropin.copies import Copyable
from hvdtrain.torch.dropin.filling import Filling
from hvdtrain.torch.dropin.packing import pack, unpack
from hvdtrain.torch.dropin.session import waiting_for_ranks
from hvdtrain.torch.world import device, gather_bytes

_State = dict[str, Any]
# Each step of theirs needs all gradients or all state, not those of one parameter at a time.
_WHOLE_ALONE = ("LBFGS", "FusedLAMB", "FusedMixedPrecisionLamb", "Prodigy", "DAdapt", "ScheduleFree")


class Shardable(Copyable):
    """A wrapped optimizer whose state ranks may share out; without `zero_stage` nothing is shared."""

    _sharding: Sharding

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Collect the state of all ranks on one, whose `state_dict` is whole until the next step.

        Every rank calls it. Without `zero_stage` there is nothing to do.

        Args:
            to: the rank.

        Raises:
            TrainingError: an optimizer keeps something that is neither a tensor nor a plain value.
        """
        self._sharding.consolidate(self, to)

    def state_dict(self) -> _State:
        """As the optimizer's own, of all ranks; it loads with any `zero_stage` on any number of ranks.

        Raises:
            TrainingError: this rank does not know the others' state.
        """
        return self._sharding.completed(self, super().state_dict())  # type: ignore[misc]

    def load_state_dict(self, state_dict: _State) -> None:
        """As the optimizer's own; this rank keeps what is of its parameters.

        Args:
            state_dict: whole, saved with any `zero_stage` on any number of ranks.
        """
        own, others = self._sharding.cut(self, state_dict)
        super().load_state_dict(own)  # type: ignore[misc]
        self._sharding.others = others

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies would have a part of the state.

        Raises:
            TrainingError: ranks share the state.
        """
        if self._sharding.owners.ranks > 1:
            raise TrainingError(
                "a copy of an optimizer with zero_stage=1 (copy.deepcopy, pickle or torch.save) would have "
                "this rank's part of the state alone: call consolidate_state_dict() on every rank, and copy "
                "state_dict()"
            )
        return super().__reduce_ex__(protocol)


class Sharding:
    """Which parameters this rank steps.

    The gradients of the others are out of the optimizer's sight while it steps, so it makes no state of them.

    Attributes:
        owners: of all parameters; this rank's are all where nothing is shared out.
        others: the state of other ranks' parameters, by name, where it is known: before the first step, and
            from loading or consolidating to the next step. Else None.
    """

    def __init__(self, filling: Filling, name: str, process_set: Any, zero_stage: int) -> None:
        """Start without parameters.

        Args:
            filling: has the parameters, and the buckets in which they travel.
            name: of the collectives.
            process_set: the ranks that train the model; this one is among them.
            zero_stage: of the wrapper; 0: nothing is shared out.
        """
        self._filling, self._name, self._process_set = filling, name, process_set
        self.owners = Owners(process_set.size(), process_set.rank()) if zero_stage else Owners(1, 0)
        self.others: dict[str, _State] | None = {}
        self._hidden: dict[str, torch.Tensor] = {}

    def add(self, optimizer: torch.optim.Optimizer) -> None:
        """Share out parameters that are new, and let go of the state of those that are not this rank's."""
        self.owners.add(facts(self._filling.parameters))
        for name, parameter in self._not_own():
            if parameter in optimizer.state:
                state = optimizer.state.pop(parameter)
                if self.others is not None:
                    self.others[name] = state

    def is_own(self, parameter: torch.nn.Parameter) -> bool:
        """Whether this rank has a parameter's state."""
        return all(parameter is not other for _, other in self._not_own())

    @contextmanager
    def stepping(self, optimizer: torch.optim.Optimizer, closure: bool) -> Iterator[None]:
        """A step inside is of this rank's parameters, and ranks then exchange what they have stepped.

        Args:
            optimizer: before its step.
            closure: whether it calls one, after which the gradients are there: see `hide`.
        """
        if self.owners.ranks == 1:
            yield
            return
        self.others = None
        # The user's own hooks see all gradients before, and all ranks' parameters after.
        after = optimizer.register_step_post_hook(lambda *_: self._show_and_exchange())
        optimizer._optimizer_step_post_hooks.move_to_end(after.id, last=False)
        before = None if closure else optimizer.register_step_pre_hook(lambda *_: self.hide())
        try:
            yield
        finally:
            self.show()
            for hook in (before, after):
                if hook is not None:
                    hook.remove()

    def hide(self) -> None:
        """Take the gradients of other ranks' parameters away: optimizers skip None."""
        for name, parameter in self._not_own():
            if parameter.grad is not None:
                self._hidden[name], parameter.grad = parameter.grad, None

    def show(self) -> None:
        """Put back what was hidden."""
        for name, gradient in self._hidden.items():
            self._filling.parameters[name].grad = gradient
        self._hidden.clear()

    def consolidate(self, optimizer: torch.optim.Optimizer, to: int) -> None:
        """Collect the state of all ranks' parameters on one rank, a bucket at a time."""
        if self.owners.ranks == 1:
            return
        found: dict[str, _State] = {}
        for bucket in self._filling.buckets:
            own = {n: optimizer.state.get(self._filling.parameters[n]) for n in self._own(bucket.views)}
            message = pack({name: state for name, state in own.items() if state})
            name = f"{self._name}.state.bucket{bucket.layout.index}"
            with waiting_for_ranks("consolidate_state_dict"):
                every = gather_bytes(message, name, self._process_set)
            if hvd.rank() == to:
                found |= {name: state for each in every for name, state in unpack(each).items()}
        if hvd.rank() == to:
            self.others = {name: state for name, state in found.items() if not self.owners.owns(name)}

    def completed(self, optimizer: torch.optim.Optimizer, state_dict: _State) -> _State:
        """An optimizer's own `state_dict`, with the state of other ranks' parameters."""
        if self.others is None:
            raise TrainingError(
                "optimizer.state_dict(): with zero_stage=1 this rank has the state of its own parameters "
                "alone. After the last step() call optimizer.consolidate_state_dict(to=0) on every rank, "
                "then state_dict() on that rank"
            )
        places = {id(p): place for place, p in enumerate(_parameters(optimizer))}
        others = {places[id(self._filling.parameters[name])]: state for name, state in self.others.items()}
        return {**state_dict, "state": state_dict["state"] | others}

    def cut(self, optimizer: torch.optim.Optimizer, state_dict: _State) -> tuple[_State, dict[str, _State]]:
        """What of a whole `state_dict` this rank is to load, and what it has of other ranks' parameters."""
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        names = {id(parameter): name for name, parameter in self._not_own()}
        # Where lengths differ, loading says so.
        pairs = zip(places, _parameters(optimizer), strict=False)
        left_out = {place: names[id(parameter)] for place, parameter in pairs if id(parameter) in names}
        state = state_dict["state"]
        own = {place: value for place, value in state.items() if place not in left_out}
        others = {name: state[place] for place, name in left_out.items() if place in state}
        return {**state_dict, "state": own}, others

    @torch.no_grad()
    def _show_and_exchange(self) -> None:
        """Send what was stepped here to the other ranks, and receive the rest, a bucket at a time."""
        self.show()
        buckets = [each for each in self._filling.buckets if each.layout.size and self._is_trained(each)]
        with waiting_for_ranks("updated parameters"):
            # Two are under way at a time: all together would be a second model.
            handle = self._send(buckets[0]) if buckets else None
            for bucket, following in zip(buckets, [*buckets[1:], None], strict=True):
                whole, handle = handle, None if following is None else self._send(following)
                self._receive(bucket, hvd.synchronize(whole))

    def _send(self, bucket: GradBucket) -> int:
        own = [_bytes(self._filling.parameters[name]) for name in self._own(bucket.views)]
        flat = torch.cat([torch.empty(0, dtype=torch.uint8, device=device()), *own])
        name = f"{self._name}.weights.bucket{bucket.layout.index}"
        # Horovod counts elements in an int: bytes of one weight may be too many.
        sizes = [self._filling.parameters[name].nbytes for name in bucket.views]
        words = flat.view(torch.int32 if all(size % 4 == 0 for size in sizes) else torch.uint8)
        return hvd.allgather_async(words, name=name, process_set=self._process_set)

    def _receive(self, bucket: GradBucket, whole: torch.Tensor) -> None:
        names = self.owners.in_order(bucket.views)
        parameters = [self._filling.parameters[name] for name in names]
        parts = whole.view(torch.uint8).split([p.nbytes for p in parameters])
        for name, parameter, part in zip(names, parameters, parts, strict=True):
            if not self.owners.owns(name):
                # Cloned: its first byte may lie where no number of this dtype can.
                parameter.copy_(part.clone().view(parameter.dtype).view(parameter.shape))

    def _own(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self.owners.owns(name)]

    def _not_own(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(n, p) for n, p in self._filling.parameters.items() if not self.owners.owns(n)]

    def _is_trained(self, bucket: GradBucket) -> bool:
        parameters = [self._filling.parameters[name] for name in bucket.views]
        return any(p.requires_grad or p.grad is not None for p in parameters)


def check_shardable(optimizer: torch.optim.Optimizer) -> None:
    """Raise SpecError for an optimizer that is known not to step each parameter by itself."""
    for kind in type(optimizer).__mro__:
        if any(name in kind.__name__ for name in _WHOLE_ALONE):
            raise SpecError(
                f"DistributedOptimizer: zero_stage: {kind.__name__} does not update each parameter by "
                "itself: ranks would update theirs otherwise than one process does. Use zero_stage=0"
            )


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
