"""Weights of which each rank holds its shards alone, whole where modules use them (ZeRO-3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.update.gathers import plan_gathers
from hvdtrain.core.update.shards import Shard
from hvdtrain.torch.flat_weights import HeldWeights
from hvdtrain.torch.placeholders import empty, is_empty
from hvdtrain.torch.shards import ShardExchange


@dataclass(frozen=True)
class _Place:
    """Where a parameter, or what autograd has saved of one, lies in a whole bucket."""

    bucket: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class GatheredWeights(HeldWeights):
    """Shards of the weights; a layer is gathered before its forward and backward pass, and released after it.

    Parameters hold no memory and NaN for every element, so that nothing can be computed with one that was not
    gathered. Modules have tensors in their places while their forward pass runs. Autograd saves where a
    weight lies, not the weight, and has its layer gathered again when it asks for it.
    """

    def __init__(
        self,
        rules: Rules,
        shards: Sequence[Shard],
        parameters: Mapping[str, torch.nn.Parameter],
        exchange: ShardExchange,
        module: torch.nn.Module,
    ) -> None:
        """Take this rank's shards of rank 0's weights, and the memory from the parameters.

        Args:
            rules: say in which dtype buckets travel.
            shards: what this rank owns of each bucket of the plan.
            parameters: by weight name; those on the device `meta` have no values yet.
            exchange: with the other ranks.
            module: has the parameters.
        """
        own = [_take_shard(shard, parameters, exchange) for shard in shards]
        super().__init__(rules, shards, own, exchange)
        self._exchange: ShardExchange = exchange
        self._shard = {weight.name: shard for shard in shards for weight in shard.bucket.weights}
        plan = plan_gathers([shard.bucket for shard in shards])
        self._units, self._held = plan.units, plan.held
        self._unit = {index: unit for unit, indices in enumerate(plan.units) for index in indices}
        # In passes with and without a backward pass: what is expected, and what the last one gathered.
        self._planned = {False: plan.forward, True: (*plan.forward, *plan.backward)}
        self._seen = dict(self._planned)
        self._training, self._fetched = False, list[int]()
        self._next = 0
        # By unit: Horovod's handles of what is on its way, what is here, and how many modules use it now.
        self._coming: dict[int, list[int]] = {}
        self._whole: dict[int, dict[int, torch.Tensor]] = {}
        self._users: Counter[int] = Counter()
        # The bucket at each address.
        self._addresses: dict[int, int] = {}
        # What running modules have in place of parameters, the innermost last.
        self._replaced: list[list[_Slot]] = []
        self._watch(module, _places(shards, parameters))

    def send(self) -> None:
        """The other ranks ask for what this one has updated when they use it."""

    def settle(self) -> None:
        """Wait for what is on its way, and release everything."""
        for unit in [*self._coming]:
            self._arrive(unit)
        for unit in [*self._whole]:
            self._release(unit)
        if self._fetched:
            self._seen[self._training] = tuple(self._fetched)
        self._next, self._fetched = 0, []

    @contextmanager
    def in_use(self, training: bool) -> Iterator[None]:
        """Around a forward pass; with `training`, its backward pass follows.

        A rank that had nothing to compute takes part in the gathers of the others: those of its last pass.
        """
        self.settle()
        self._training = training
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield
        if not self._fetched:
            # One after the other: no more than a layer is here at a time.
            for unit in (seen := self._seen[training]):
                self._start(unit)
                self.settle()
            self._seen[training] = seen
        elif training:
            for unit in self._whole.keys() - {self._held}:
                self._release(unit)
            self._look_ahead(self._held)
        else:
            self.settle()

    def write(self, weight: Weight, array: np.ndarray) -> None:
        """See `HeldWeights.write`; each rank takes its part."""
        self.settle()
        shard = self._shard[weight.name]
        theirs, mine = shard.part(weight.name)
        self.own[shard.bucket.index][mine].copy_(torch.from_numpy(array.reshape(-1)[theirs]))

    def _master(self, index: int) -> torch.Tensor:
        return self._exchange.gather(self._shards[index], self.own[index], "masters")

    @property
    def _order(self) -> tuple[int, ...]:
        return self._planned[self._training]

    def _need(self, units: Collection[int]) -> None:
        """Have some units here, and no others but those that modules use now and the one that comes next."""
        coming = self._order[self._next :]
        missing = [unit for unit in units if unit not in self._whole]
        if not missing:
            return
        for unit in [*self._whole]:
            if unit not in units and not self._users[unit]:
                self._release(unit)
        for unit in sorted(missing, key=lambda unit: coming.index(unit) if unit in coming else -1):
            self._start(unit)
            self._look_ahead(unit)
            self._arrive(unit)

    def _look_ahead(self, unit: int) -> None:
        """Start what is used after a unit."""
        if unit in self._order[self._next :]:
            self._next = self._order.index(unit, self._next) + 1
        for following in self._order[self._next : self._next + 1]:
            self._start(following)

    def _start(self, unit: int) -> None:
        if unit in self._whole or unit in self._coming:
            return
        self._fetched.append(unit)
        own = {index: self.own[index].to(self._dtypes[index]) for index in self._units[unit]}
        self._exchange.count(sum(part.nbytes for part in own.values()))
        self._coming[unit] = [
            self._exchange.start(part, f"weights.bucket{index}") for index, part in own.items()
        ]

    def _arrive(self, unit: int) -> None:
        handles = zip(self._units[unit], self._coming.pop(unit), strict=True)
        whole = {index: self._exchange.finish(handle, self._dtypes[index]) for index, handle in handles}
        self._whole[unit] = whole
        self._addresses |= {_address(flat): index for index, flat in whole.items()}

    def _release(self, unit: int) -> None:
        for flat in self._whole.pop(unit).values():
            del self._addresses[_address(flat)]

    def _values(self, place: _Place) -> torch.Tensor:
        """The whole weight, or the part of it, that lies at a place."""
        flat = self._whole[self._unit[place.bucket]][place.bucket]
        return flat.as_strided(place.shape, place.stride, place.offset)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | _Place:
        bucket = self._addresses.get(_address(tensor))
        if bucket is None:
            return tensor
        return _Place(bucket, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, saved: torch.Tensor | _Place) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        self._need([self._unit[saved.bucket]])
        return self._values(saved)

    def _watch(self, module: torch.nn.Module, places: Mapping[int, _Place]) -> None:
        for each in module.modules():
            slots = [
                _Slot(owner, name, parameter, places[id(parameter)])
                for owner in each.modules()
                for name, parameter in owner.named_parameters(recurse=False)
                if id(parameter) in places
            ]
            units = {self._unit[slot.place.bucket] for slot in slots}
            # A module with weights of its own may use its children's, too, as `MultiheadAttention` does.
            owns = any(slot.owner is each for slot in slots)
            if owns or len(units) == 1:
                each.register_forward_pre_hook(lambda *_, x=(units, slots): self._enter(*x))
                each.register_forward_hook(lambda *_, units=units: self._leave(units), always_call=True)

    def _enter(self, units: Collection[int], slots: Sequence[_Slot]) -> None:
        self._users.update(units)
        self._need(units)
        replaced = [slot for slot in slots if slot.owner._parameters[slot.name] is slot.parameter]
        for slot in replaced:
            values = self._values(slot.place)
            if torch.is_grad_enabled():
                values = _Use.apply(slot.parameter, values)
            slot.owner._parameters[slot.name] = values  # type: ignore[assignment]
        self._replaced.append(replaced)

    def _leave(self, units: Collection[int]) -> None:
        self._users.subtract(units)
        for slot in self._replaced.pop():
            slot.owner._parameters[slot.name] = slot.parameter


@dataclass(frozen=True, eq=False)
class _Slot:
    """A parameter in its module."""

    owner: torch.nn.Module
    name: str
    parameter: torch.nn.Parameter
    place: _Place


class _Use(torch.autograd.Function):
    """Values that stand for a parameter, which gets their gradient."""

    @staticmethod
    def forward(context: Any, parameter: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        context.dtype = parameter.dtype
        return values.view(values.shape)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.to(context.dtype), None


def _take_shard(
    shard: Shard, parameters: Mapping[str, torch.nn.Parameter], exchange: ShardExchange
) -> torch.Tensor:
    """Rank 0's values of a shard; the parameters give their memory back."""
    first = parameters[shard.bucket.weights[0].name]
    own = torch.zeros(shard.size, dtype=first.dtype, device=first.device)
    for weight in shard.bucket.weights:
        parameter = parameters[weight.name]
        if not is_empty(parameter):
            values = exchange.broadcast(parameter.detach().reshape(-1), f"initial.{weight.name}")
            theirs, mine = shard.part(weight.name)
            own[mine] = values[theirs]
        parameter.data = empty(parameter.shape, parameter.dtype, parameter.device)
    return own


def _places(shards: Sequence[Shard], parameters: Mapping[str, torch.nn.Parameter]) -> dict[int, _Place]:
    """Where each parameter lies, by its identity."""
    found = {}
    for bucket in (shard.bucket for shard in shards):
        for weight, end in zip(bucket.weights, accumulate(bucket.sizes), strict=True):
            stride = torch.empty(weight.shape, device="meta").stride()
            found[id(parameters[weight.name])] = _Place(bucket.index, weight.shape, stride, end - weight.size)
    return found


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
