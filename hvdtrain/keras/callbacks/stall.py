"""An end with a name to it, where a rank stopped and the others would wait for ever."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import horovod.tensorflow as hvd
import keras

from hvdtrain.core.errors import SpecError
from hvdtrain.core.run.stall import StallWatch
from hvdtrain.keras.attach import engines_of
from hvdtrain.keras.callbacks.base import Callback
from hvdtrain.tensorflow.dropin.messages import broadcast_bytes


class StallGuard(Callback):
    """Ends every rank, naming those that stopped answering, when none has come further for a while.

    Ranks tell rank 0 how far they are, over TCP. One that ends without leaving `fit` is named at once. Allow
    for the longest wait there is on purpose, such as rank 0 saving a model.
    """

    def __init__(self, timeout: float = 60.0) -> None:
        """Choose how long to wait.

        Args:
            timeout: seconds without progress that are too many.
        """
        super().__init__()
        if timeout <= 0:
            raise SpecError(f"StallGuard: timeout: expected seconds above 0 (found {timeout})")
        self.timeout = timeout
        self._watch: StallWatch | None = None

    def set_model(self, model: keras.Model) -> None:
        """Called by Keras before the step is traced, in which gradients that are ready count as progress."""
        super().set_model(model)
        for engine in engines_of(model):
            engine.when_gradients_are_ready = self._advance
        model.train_function = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Connect."""
        limit = os.environ.get("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "")
        if limit.isdigit() and 0 < int(limit) < self.timeout - 10 and hvd.rank() == 0:
            print(
                f"hvdtrain: StallGuard waits {self.timeout:g} s, but Horovod itself ends ranks that wait for "
                f"about {limit} s: set HOROVOD_STALL_SHUTDOWN_TIME_SECONDS to more",
                flush=True,
            )
        host = "127.0.0.1" if hvd.local_size() == hvd.size() else socket.getfqdn()
        self._watch = StallWatch(hvd.rank(), hvd.size(), self.timeout, broadcast_bytes, _stop, host)
        self.attached.before_leaving.append(self._watch.close)
        super().on_train_begin(logs)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Progress."""
        self._advance()

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Progress."""
        self._advance()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Progress."""
        self._advance()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave in good order."""
        if self._watch:
            self._watch.close()
        super().on_train_end(logs)

    def _advance(self) -> None:
        if self._watch:
            self._watch.progress += 1


def _stop(message: str) -> None:
    print(f"[rank {hvd.rank()}] hvdtrain StallGuard: {message}", file=sys.stderr, flush=True)
    # The main thread is inside a collective that nobody will complete.
    os._exit(1)
