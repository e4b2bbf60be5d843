"""faulty.py FRAMEWORK FAULT OUTPUT_DIR [OVERRIDE...]: a job whose rank 1 fails at its third update.

Or whose disk fills.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from hvdtrain.core.run.job import Framework, run_job
from tests.jobs.runs import TINY, start_sooner


def main(name: str, fault: str, output_dir: str, *overrides: str) -> None:
    def load() -> Framework:
        framework = importlib.import_module(f"hvdtrain.{name}.job")._load()
        spoil(framework.trainer, fault)
        return framework

    settings = [part for override in (*TINY, "max_steps=8", *overrides) for part in ("--set", override)]
    run_job(load, "bert", [*settings, "--output-dir", output_dir])


def spoil(trainer: Any, fault: str) -> None:
    update, save, find = trainer.update, trainer.save, trainer.find_nonfinite

    def failing_update(self: Any, window: Any, *arguments: Any) -> Any:
        if self.world.rank == 1 and self.step == 2 and fault == "raise":
            raise RuntimeError("the third update is cursed")
        if self.world.rank == 1 and self.step == 2 and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "nan" and self.world.rank == 1 and self.step == 2:
            weights = self.read_weights()
            weights["cls.predictions.bias"][:] = float("nan")
            self.load_weights(weights)
        return update(self, overflowing(self, window), *arguments)

    def failing_find(self: Any, window: Any, *arguments: Any) -> Any:
        return find(self, overflowing(self, window), *arguments)

    def overflowing(self: Any, window: Any) -> Any:
        if fault != "overflow" or self.world.rank != 1 or self.step != 2:
            return window
        # A loss that float32 holds, and gradients that float16 does not.
        large = [dataclasses.replace(b, loss_weights=1e9 * b.loss_weights) for b in window.micro_batches]
        return dataclasses.replace(window, micro_batches=tuple(large))

    def failing_save(self: Any, directory: Path) -> None:
        if fault == "disk":
            # The kernel then refuses to let any file grow beyond 20 kB, as a full disk would.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        save(self, directory)

    trainer.update, trainer.save, trainer.find_nonfinite = failing_update, failing_save, failing_find


if __name__ == "__main__":
    start_sooner()
    main(*sys.argv[1:])
