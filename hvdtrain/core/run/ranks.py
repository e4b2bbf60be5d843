"""What the ranks of a job ask each other, in NumPy arrays and bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save

from hvdtrain.core.process.heartbeat import report_work
from hvdtrain.core.run.world import World

# Horovod counts what it hands to MPI in an int, up to 2^31 - 1. Shorter messages are as quick, and take less
# memory on their way.
MESSAGE_BYTES = 2**28


@dataclass(frozen=True)
class Ranks:
    """All ranks of a job, as one of them sees them. Every method is a collective: every rank calls it.

    A framework supplies the collectives. Their names, by which Horovod matches what ranks ask for, are given
    here, so that they are the same in both frameworks.

    Attributes:
        world: this rank's place.
        sum_arrays: the element-wise sum over ranks: (array, name).
        broadcast_array: rank 0's copy of an array: (array, name).
        gather_bytes: every rank's bytes, in the order of ranks: (bytes, name).
    """

    world: World
    sum_arrays: Callable[[np.ndarray, str], np.ndarray]
    broadcast_array: Callable[[np.ndarray, str], np.ndarray]
    gather_bytes: Callable[[bytes, str], Sequence[bytes]]

    @property
    def rank(self) -> int:
        """This rank's number, from 0."""
        return self.world.rank

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self.world.size

    @property
    def is_chief(self) -> bool:
        """Whether this is the rank that writes files and reads checkpoints."""
        return self.world.is_chief

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The element-wise sum over all ranks, in several messages where one is too short.

        Args:
            values: of the same shape and dtype on every rank.

        Returns:
            The sum, of the same shape and dtype.
        """
        found = in_pieces(values, lambda piece: self.sum_arrays(piece, "sum_over_ranks"))
        report_work()
        return found

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """Rank 0's copy of an array, which travels as bytes and in several messages where one is too short.

        Args:
            values: of the same shape and dtype on every rank.
        """
        sent = np.asarray(values, order="C").reshape(-1).view(np.uint8)
        found = in_pieces(sent, lambda piece: self.broadcast_array(piece, "broadcast")) if sent.size else sent
        report_work()
        return found.view(values.dtype).reshape(values.shape)

    def broadcast_arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rank 0's arrays by name; the other ranks need not know their names and shapes.

        Args:
            arrays: of rank 0; those of other ranks are not looked at.
        """
        message = np.frombuffer(save(dict(arrays)), np.uint8) if self.is_chief else np.zeros(0, np.uint8)
        size = int(self.broadcast(np.array([message.size], np.int64))[0])
        if not self.is_chief:
            message = np.zeros(size, np.uint8)
        return dict(load(self.broadcast(message.copy()).tobytes()))

    def gather(self, data: bytes) -> Sequence[bytes]:
        """Every rank's bytes, in the order of ranks; ranks may use different frameworks.

        Args:
            data: of any length above 0, which may differ between ranks.
        """
        found = self.gather_bytes(data, "agreement")
        report_work()
        return found


def in_pieces(values: np.ndarray, send: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What a collective makes of an array, piece by piece where it is too long for one message.

    Args:
        values: of any shape and dtype.
        send: the collective, which gives an array like the one that it is given.
    """
    if values.nbytes <= MESSAGE_BYTES:
        return send(values)
    flat, step = values.reshape(-1), MESSAGE_BYTES // values.itemsize
    found = np.empty_like(flat)
    for start in range(0, flat.size, step):
        found[start : start + step] = send(flat[start : start + step])
    return found.reshape(values.shape)
