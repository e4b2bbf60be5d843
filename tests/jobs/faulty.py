"""faulty.py FRAMEWORK FAULT OUTPUT_DIR [OVERRIDE...]: a job whose rank 1 fails at its third update or save.

Or whose disk fills.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hvdtrain.core.data import Window
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.process.environment import launched_rank
from hvdtrain.core.run.adapter import Adapter, ModelState, OptimizerState
from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.requests import NO_REQUESTS, Requests
from hvdtrain.core.run.results import UpdateResult
from hvdtrain.core.run.script import run_job
from tests.jobs.runs import TINY, start_sooner


def main(name: str, fault: str, output_dir: str, *overrides: str) -> None:
    def load() -> Framework:
        framework = importlib.import_module(f"hvdtrain.{name}.job").load()
        return dataclasses.replace(
            framework, adapter=lambda *arguments: Faulty(framework.adapter(*arguments), fault)
        )

    settings = [part for override in (*TINY, "max_steps=8", *overrides) for part in ("--set", override)]
    run_job(load, "bert", [*settings, "--output-dir", output_dir])


class OnFullDisk:
    """A model for which no disk has room once it has been read: that is when it is saved."""

    def __init__(self, model: ModelState) -> None:
        self.write = model.write
        self._read = model.read

    def read(self, weights: Sequence[Weight] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        # The kernel then refuses to let any file grow beyond 20 kB, as a full disk would.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return self._read(weights)


class KilledWhenRead:
    """An optimizer whose rank is killed when some of its moments have been read, as they are when saved."""

    def __init__(self, optimizer: OptimizerState) -> None:
        self._optimizer, self.wire_bytes = optimizer, optimizer.wire_bytes

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        for number, moment in enumerate(self._optimizer.read()):
            if number == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield moment


class Faulty:
    """An adapter that does what another one does, but for one fault."""

    def __init__(self, adapter: Adapter, fault: str) -> None:
        self._adapter, self._fault = adapter, fault
        self._faulty_rank, self._update = launched_rank() == 1, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    @property
    def model(self) -> ModelState:
        return OnFullDisk(self._adapter.model) if self._fault == "disk" else self._adapter.model

    @property
    def optimizer(self) -> OptimizerState:
        found: Any = self._adapter.optimizer
        return KilledWhenRead(found) if self._is_due("killed save") else found

    def update(
        self,
        window: Window,
        divisor: float,
        next_weight: float,
        learning_rate: float,
        update: int,
        loss_scale: float,
        requests: Requests = NO_REQUESTS,
    ) -> UpdateResult:
        self._update = update
        if self._is_due("raise"):
            raise RuntimeError("the third update is cursed")
        if self._is_due("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._is_due("nan"):
            weights = dict(self._adapter.model.read())
            weights["cls.predictions.bias"][:] = float("nan")
            self._adapter.model.write(weights)
        return self._adapter.update(
            self._overflowing(window), divisor, next_weight, learning_rate, update, loss_scale, requests
        )

    def find_nonfinite(self, window: Window, divisor: float, loss_scale: float) -> np.ndarray:
        return self._adapter.find_nonfinite(self._overflowing(window), divisor, loss_scale)

    def _overflowing(self, window: Window) -> Window:
        if not self._is_due("overflow"):
            return window
        # A loss that float32 holds, and gradients that float16 does not.
        large = [dataclasses.replace(b, loss_weights=1e9 * b.loss_weights) for b in window.micro_batches]
        return dataclasses.replace(window, micro_batches=tuple(large))

    def _is_due(self, fault: str) -> bool:
        return self._fault == fault and self._faulty_rank and self._update == 3


if __name__ == "__main__":
    start_sooner()
    main(*sys.argv[1:])
