"""killed.py UPDATES PROGRAM [ARGUMENT...]: runs a program, whose rank 1 is killed after so many updates."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import Any

from hvdtrain.core.process.environment import launched_rank


class Killed:
    """Counts updates, and ends this process without a word when there were enough."""

    def __init__(self, updates: int) -> None:
        self._left = updates

    def __call__(self, *_: Any) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


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
    updates, *sys.argv = sys.argv[1:]
    if launched_rank() == 1:
        after_each_update(Killed(int(updates)), sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
