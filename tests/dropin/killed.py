"""killed.py UPDATES[:SIGNAL] PROGRAM [ARGUMENT...]: runs a program whose rank 1 gets a signal after so many.

SIGKILL, if no other is named.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import Any

from hvdtrain.core.process.environment import launched_rank


class Killed:
    """Counts updates, and sends this process a signal when there were enough."""

    def __init__(self, updates: int, number: int) -> None:
        self._left, self._number = updates, number

    def __call__(self, *_: Any) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), self._number)


def after_each_update(call: Killed, program: str) -> None:
    """Have it called, in either framework."""
    if "torch" in program:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(call)
        return
    import hvdtrain.keras  # noqa: F401 (sets what Keras reads when it is imported)

    # isort: split
    import keras

    plain = keras.callbacks.CallbackList.on_train_batch_end

    def on_train_batch_end(self: Any, batch: int, logs: Any = None) -> None:
        plain(self, batch, logs)
        call()

    keras.callbacks.CallbackList.on_train_batch_end = on_train_batch_end


if __name__ == "__main__":
    when, *sys.argv = sys.argv[1:]
    if launched_rank() == 1:
        updates, _, name = when.partition(":")
        after_each_update(Killed(int(updates), signal.Signals[name or "SIGKILL"]), sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
