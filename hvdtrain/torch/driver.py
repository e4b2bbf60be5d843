"""What a compression policy asks for, as Horovod's collectives on tensors that are under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import horovod.torch as hvd
import torch

from hvdtrain.core.compression.protocol import (
    AdasumReduce,
    AllGather,
    AllReduce,
    Reduction,
    Request,
    State,
)


@dataclass
class Work:
    """A policy's generator on its way.

    Attributes:
        bucket: its index.
        flat: where the sum goes, shape (bucket.size,).
        reduction: the generator.
        next_state: the policy's state when it is done.
        requests: how many it has made.
        request: the one that is under way; None when it is done.
        handle: Horovod's, of that request.
    """

    bucket: int
    flat: torch.Tensor
    reduction: Reduction
    next_state: State = field(default_factory=dict)
    requests: int = 0
    request: Request | None = None
    handle: int = -1


def launch(request: Request, name: str, process_set: Any = hvd.global_process_set) -> int:
    """Hand a request to Horovod, which sends it from a thread of its own.

    Args:
        request: what a policy asks for.
        name: the same on all ranks, and of no other collective under way.
        process_set: the ranks that take part.

    Returns:
        Horovod's handle.
    """
    array = request.array.contiguous()
    if isinstance(request, AllReduce):
        return hvd.allreduce_async_(array, op=hvd.Sum, name=name, process_set=process_set)
    if isinstance(request, AdasumReduce):
        # Horovod takes the dot products of each tensor of a group by itself.
        parts = [part for part in array.split(request.sizes) if len(part)]
        return hvd.grouped_allreduce_async_(parts, op=hvd.Adasum, name=name)
    ask = hvd.allgather_async if isinstance(request, AllGather) else hvd.alltoall_async
    return ask(array, name=name, process_set=process_set)


def wait(request: Request, handle: int, process_set: Any = hvd.global_process_set) -> torch.Tensor:
    """The answer to a request, as the protocol says it."""
    reply = hvd.synchronize(handle)
    if isinstance(request, AllReduce):
        return reply
    if isinstance(request, AllGather):
        return reply.view(process_set.size(), -1)
    if isinstance(request, AdasumReduce):
        return torch.cat(reply)
    received, _ = reply
    return received
