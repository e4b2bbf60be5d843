"""Whole weights in flat tensors, of which a rank may update its shards alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch

from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.update.shards import UNDER_WAY, Shard
from hvdtrain.torch.shards import ShardExchange
from hvdtrain.torch.weights import host_copy, write


class HeldWeights(ABC):
    """The weights that ranks train, in flat tensors laid out as the gradient buckets.

    Attributes:
        own: what this rank updates of each bucket, (shard.size,): all of it, or its shard.
    """

    def __init__(
        self,
        rules: Rules,
        shards: Sequence[Shard],
        own: Sequence[torch.Tensor],
        exchange: ShardExchange | None,
    ) -> None:
        """Hold what there is.

        Args:
            rules: say in which dtype buckets travel.
            shards: what this rank owns of each bucket of the plan.
            own: what is in them.
            exchange: with the ranks that own the rest; None: nobody does.
        """
        self.own, self._shards, self._exchange = own, shards, exchange
        names = [rules.gathered_as(shard.bucket) for shard in shards]
        self._dtypes = [
            flat.dtype if n is None else getattr(torch, n) for n, flat in zip(names, own, strict=True)
        ]

    def read(self, weights: Sequence[Weight]) -> Iterator[tuple[str, np.ndarray]]:
        """Copies of some weights by name, in the Hugging Face layout.

        Where ranks share them, every rank goes through all of them.
        """
        wanted = {weight.name for weight in weights}
        for bucket in (shard.bucket for shard in reversed(self._shards)):
            if not wanted.isdisjoint(weight.name for weight in bucket.weights):
                parts = self._master(bucket.index)[: bucket.size].split(bucket.sizes)
                for weight, part in zip(bucket.weights, parts, strict=True):
                    if weight.name in wanted:
                        yield weight.name, host_copy(part).numpy().reshape(weight.shape)

    @abstractmethod
    def write(self, weight: Weight, array: np.ndarray) -> None:
        """Set a weight from an array in the Hugging Face layout."""

    @abstractmethod
    def send(self) -> None:
        """Begin to tell the other ranks what this one has updated."""

    @abstractmethod
    def settle(self) -> None:
        """Wait for all that is on its way: what this rank owns is about to change."""

    @abstractmethod
    def in_use(self, training: bool) -> AbstractContextManager[None]:
        """Around a forward pass; with `training`, its backward pass follows."""

    @abstractmethod
    def _master(self, index: int) -> torch.Tensor:
        """A whole bucket as ranks update it, (shard.padded,)."""


class FlatWeights(HeldWeights):
    """Every weight, as a view into a flat tensor that is laid out as its gradient bucket.

    Where ranks own shards, each is sent the others' while the next forward pass begins: a module waits for
    those buckets alone that it has weights in. Few are on their way at a time, and every rank starts them in
    the same order: whatever its modules wait for first, no rank waits for what another one starts later.
    """

    def __init__(
        self,
        rules: Rules,
        shards: Sequence[Shard],
        parameters: Mapping[str, torch.nn.Parameter],
        exchange: ShardExchange | None = None,
        module: torch.nn.Module | None = None,
    ) -> None:
        """Move every weight into its flat tensor.

        Args:
            rules: say in which dtype buckets travel.
            shards: what this rank owns of each bucket of the plan.
            parameters: by weight name.
            exchange: with the ranks that own the rest; None: nobody does.
            module: its modules use no parameters but their own; None: a pass waits for all of them.
        """
        self._parameters, self._flats = parameters, [_flatten(shard, parameters) for shard in shards]
        pairs = zip(shards, self._flats, strict=True)
        own = [flat[shard.start : shard.start + shard.size] for shard, flat in pairs]
        super().__init__(rules, shards, own, exchange)
        # By the bucket's index: Horovod's handles of what is on its way, and below them what follows.
        self._coming: dict[int, int] = {}
        self._waiting: list[int] = []
        self._waits = module is None
        if module is not None and exchange is not None:
            self._watch(module)

    def send(self) -> None:
        """Begin to give the other ranks what this one has updated, in the order in which it is used."""
        if self._exchange is None:
            return
        self._waiting = [shard.bucket.index for shard in reversed(self._shards)]
        # Counted now: they are of the update that has been taken.
        self._exchange.count(
            sum(own.numel() * d.itemsize for own, d in zip(self.own, self._dtypes, strict=True))
        )
        self._start_next()

    def settle(self) -> None:
        """Wait for all that is on its way."""
        self._receive([*self._coming, *self._waiting])

    def in_use(self, training: bool) -> AbstractContextManager[None]:
        """Around a forward pass, whose modules wait for what they need."""
        del training
        return nullcontext() if self._exchange is None else self._received()

    @contextmanager
    def _received(self) -> Iterator[None]:
        if self._waits:
            self.settle()
        yield
        # Also what no module of this rank has used: other ranks wait for it.
        self.settle()

    def _master(self, index: int) -> torch.Tensor:
        if self._exchange is not None and self._dtypes[index] != self.own[index].dtype:
            return self._exchange.gather(self._shards[index], self.own[index], "masters")
        self._receive([index])
        return self._flats[index]

    def write(self, weight: Weight, array: np.ndarray) -> None:
        """See `HeldWeights.write`."""
        self.settle()
        write(weight, self._parameters[weight.name], array)

    def replace(self, weights: Sequence[torch.Tensor]) -> None:
        """Set every weight, where ranks hold them whole.

        Args:
            weights: flat, one a bucket.
        """
        for own, given in zip(self.own, weights, strict=True):
            if given.data_ptr() != own.data_ptr():
                own.copy_(given)

    def _watch(self, module: torch.nn.Module) -> None:
        buckets = {
            id(self._parameters[w.name]): s.bucket.index for s in self._shards for w in s.bucket.weights
        }
        for each in module.modules():
            indices = {buckets[id(p)] for p in each.parameters(recurse=False) if id(p) in buckets}
            if indices:
                each.register_forward_pre_hook(lambda *_, indices=indices: self._receive(indices))

    def _receive(self, indices: Collection[int]) -> None:
        if self._exchange is None:
            return
        for index in indices:
            while index in self._waiting:
                self._start(self._waiting[0])
            if index in self._coming:
                whole = self._exchange.finish(self._coming.pop(index), self._dtypes[index])
                flat, shard = self._flats[index], self._shards[index]
                # What this rank owns stays as it is: it may have been rounded on its way.
                for others in (slice(0, shard.start), slice(shard.start + shard.size, None)):
                    flat[others].copy_(whole[others])
                del whole
                self._start_next()

    def _start_next(self) -> None:
        while self._waiting and len(self._coming) < UNDER_WAY:
            self._start(self._waiting[0])

    def _start(self, index: int) -> None:
        assert self._exchange is not None
        self._waiting.remove(index)
        own = self.own[index].to(self._dtypes[index])
        self._coming[index] = self._exchange.start(own, f"weights.bucket{index}")


def _flatten(shard: Shard, parameters: Mapping[str, torch.nn.Parameter]) -> torch.Tensor:
    bucket = shard.bucket
    own = [parameters[w.name].detach().reshape(-1) for w in bucket.weights]
    flat = torch.cat([*own, own[0].new_zeros(shard.padded - bucket.size)])
    for weight, part in zip(bucket.weights, flat[: bucket.size].split(bucket.sizes), strict=True):
        parameters[weight.name].data = part.view(weight.shape)
    return flat
