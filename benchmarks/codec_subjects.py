"""What `codecs.py` times: policies in both frameworks, PyTorch's hooks and memcpy."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from hvdtrain.core.compression.protocol import AllGather, Policy, Reduction, Request, State
from hvdtrain.core.update.buckets import Bucket

RANKS = 2
# Beyond every warm-up's default.
FIRST_UPDATE = 2000
# Called once an update; its set-up runs each time, outside of what it times, and returns seconds.
Timed = Callable[[], float]


def memcpy(gradients: np.ndarray) -> Timed:
    """A copy into memory that is there."""
    target = gradients.copy()
    return lambda: _time(lambda: np.copyto(target, gradients))


def gpu_memcpy(gradients: np.ndarray) -> Timed:
    """The same in the memory of a GPU."""
    import torch

    source = torch.from_numpy(gradients).cuda()
    target = source.clone()
    return lambda: _torch_time(lambda: target.copy_(source))


def torch_codec(policy: Policy, bucket: Bucket, gradients: np.ndarray) -> Timed:
    """A policy as `hvdtrain.torch.driver` drives it, on a GPU where there is one."""
    import torch

    from hvdtrain.torch.ops import Ops
    from hvdtrain.torch.world import device

    torch.set_num_threads(1)
    ops = Ops(RANKS, 0, 0)
    source = torch.from_numpy(gradients).to(device())
    flat, updates = source.clone(), itertools.count(FIRST_UPDATE)
    state = policy.init(ops, bucket, "float32")

    def answer(request: Request) -> torch.Tensor:
        return request.array.expand(RANKS, -1) if isinstance(request, AllGather) else request.array

    def reduce(update: int) -> None:
        nonlocal state
        total, state = _drive(policy.at(update).reduce(ops, bucket, flat, state, update), answer)
        if total is not flat:
            flat.copy_(total)

    def timed() -> float:
        flat.copy_(source)
        return _torch_time(lambda: reduce(next(updates)))

    reduce(1)
    return timed


def tensorflow_codec(policy: Policy, bucket: Bucket, gradients: np.ndarray) -> Timed:
    """A policy as `hvdtrain.tensorflow.driver` drives it, compiled."""
    import tensorflow as tf

    from hvdtrain.tensorflow.ops import Ops

    if not tf.config.threading.get_intra_op_parallelism_threads():
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    ops = Ops(RANKS, 0, 0)
    flat = tf.constant(gradients)
    updates = itertools.count(FIRST_UPDATE)
    variables = {n: tf.Variable(v, trainable=False) for n, v in policy.init(ops, bucket, "float32").items()}

    def answer(request: Request) -> tf.Tensor:
        return tf.stack([request.array] * RANKS) if isinstance(request, AllGather) else request.array

    def reduce(now: Policy, flat: tf.Tensor, update: tf.Tensor) -> tf.Tensor:
        state = {name: tf.convert_to_tensor(variable) for name, variable in variables.items()}
        total, found = _drive(now.reduce(ops, bucket, flat, dict(state), update), answer)
        for name, value in found.items():
            if value is not state[name]:
                variables[name].assign(value)
        return total

    steady = tf.function(partial(reduce, policy.at(FIRST_UPDATE)))

    def timed() -> float:
        update = tf.constant(next(updates), tf.int64)
        return _time(lambda: steady(flat, update))

    reduce(policy.at(1), flat, tf.constant(1, tf.int64))

    return timed


def torch_hooks(bucket: Bucket, gradients: np.ndarray) -> dict[str, Timed]:
    """PyTorch's hooks by the name of the policy that does the same, in a world of one rank."""
    import torch
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    from hvdtrain.torch.world import device

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    source = torch.from_numpy(gradients).to(device())
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)

    class Whole:
        """What a hook asks of DDP's bucket."""

        def __init__(self) -> None:
            self.flat = source.clone()

        def buffer(self) -> torch.Tensor:
            return self.flat

        def gradients(self) -> list[torch.Tensor]:
            shapes = zip(self.flat.split(bucket.sizes), bucket.shapes, strict=True)
            return [part.view(shape) for part, shape in shapes]

        def index(self) -> int:
            return 0

        def is_last(self) -> bool:
            return True

    def timer(hook: Callable[..., torch.futures.Future], first: object) -> Timed:
        whole = Whole()

        def timed() -> float:
            whole.flat.copy_(source)
            return _torch_time(lambda: hook(first, whole).wait())

        return timed

    return {
        "fp16": timer(default_hooks.fp16_compress_hook, None),
        "bf16": timer(default_hooks.bf16_compress_hook, None),
        "powersgd": timer(powerSGD_hook.powerSGD_hook, state),
    }


def _drive(reduction: Reduction, answer: Callable[[Request], object]) -> tuple[object, State]:
    reply = None
    while True:
        try:
            reply = answer(reduction.send(reply))
        except StopIteration as stop:
            return stop.value


def _torch_time(work: Callable[[], object]) -> float:
    """`_time`, which on a GPU ends when the GPU has done it."""
    import torch

    if not torch.cuda.is_available():
        return _time(work)
    torch.cuda.synchronize()
    return _time(lambda: (work(), torch.cuda.synchronize()))


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
