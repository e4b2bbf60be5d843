"""Worker processes: the same batches as without, an error when one dies, and none that is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from hvdtrain.core.data import Batch, Dataset, Prefetcher, eval_batches, train_windows
from hvdtrain.core.data.workers import Workers
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks import custom
from hvdtrain.core.update.accumulation import Accumulation

ROOT = Path(__file__).resolve().parents[3]
N = 23


def prepared(make: Any, workers: int, **fields: Any) -> Dataset:
    data = custom.DataSpec(dataloader_num_workers=workers, **fields).model_copy(update={"dataset": make})
    return custom.prepare(None, data, custom.TaskSpec(), 5, lambda line: None)


def plain() -> list[Any]:
    rows = np.random.default_rng(0).normal(size=(N, 3))
    return [{"x": row, "labels": i} for i, row in enumerate(rows)]


class Augmented:
    """Draws from every global generator."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return {"x": np.array([random.random(), np.random.rand(), torch.rand(1).item()]), "labels": index}


def by_sample(dataset: Dataset, size: int, per_device: int, windows: int) -> list[dict[int, Any]]:
    """The inputs of the first windows by their label, which is the sample, over all ranks."""
    accumulation = Accumulation(size, per_device, ((0, 12 // size // per_device),))
    found: list[dict[int, Any]] = [{} for _ in range(windows)]
    for rank in range(size):
        source = train_windows(dataset.train, seed=3, accumulation=accumulation, rank=rank)
        with Prefetcher(source, 2) as made:
            for into, window in zip(found, islice(made, windows), strict=True):
                for batch in window.micro_batches:
                    into |= {
                        int(i): x.tolist() for i, x in zip(batch.targets, batch.inputs["x"], strict=True)
                    }
    return found


def arrays(dataset: Dataset) -> Iterator[list[Any]]:
    """Every array of a few windows and of an evaluation."""
    accumulation = Accumulation(2, 3, ((0, 2),))
    windows = train_windows(dataset.train, seed=3, accumulation=accumulation, rank=1, start_samples=12)
    for window in islice(windows, 5):
        for batch in window.micro_batches:
            yield [batch.weight, *((n, a.dtype.str, a.tolist()) for n, a in batch.arrays().items())]
    for batch in eval_batches(dataset.validation, per_device=2, rank=0, size=2):
        yield [batch.weight, *((n, a.dtype.str, a.tolist()) for n, a in batch.arrays().items())]


@pytest.mark.parametrize("count", [1, 3])
def test_workers_give_the_same_batches_as_none(count: int) -> None:
    without, ahead = prepared(plain, 0, validation_split=0.3), prepared(plain, count, validation_split=0.3)
    assert ahead.fingerprint == without.fingerprint
    assert [*arrays(ahead)] == [*arrays(without)]


def test_what_is_random_in_a_worker_is_a_function_of_epoch_and_sample() -> None:
    one = by_sample(prepared(Augmented, 1), 1, 12, 4)
    assert one == by_sample(prepared(Augmented, 3), 2, 3, 4)
    values = [tuple(x) for window in one for x in window.values()]
    # Two epochs, and every number in them is another.
    assert len({number for value in values for number in value}) == 3 * len(values)


def test_an_error_is_told_as_without_workers() -> None:
    class Broken:
        def __len__(self) -> int:
            return N

        def __getitem__(self, index: int) -> Any:
            return 1 / (17 - index) if index > 12 else float(index)

    told = []
    for count in (0, 2):
        with pytest.raises(DataError) as caught:
            prepared(Broken, count)
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "data.dataset[17]: ZeroDivisionError" in told[0]
    assert f"{Path(__file__)}:" in told[0]


def test_with_workers_this_process_reads_no_sample() -> None:
    class Where:
        def __len__(self) -> int:
            return N

        def __getitem__(self, index: int) -> Any:
            return {"x": os.getpid(), "labels": index}

    split = prepared(Where, 2).train
    found = {int(x) for i in range(N) for x in split.collate(np.array([i]), 0, 1).inputs["x"]}
    assert os.getpid() not in found
    assert found <= {child.pid for child in psutil.Process().children()}


def test_without_workers_one_thread_reads_at_a_time() -> None:
    reading = threading.Lock()

    class Exclusive:
        def __len__(self) -> int:
            return N

        def __getitem__(self, index: int) -> Any:
            assert reading.acquire(blocking=False), "read by two threads"
            time.sleep(0.001)
            reading.release()
            return {"x": index, "labels": index}

    dataset = prepared(Exclusive, 0, validation_split=0.3)
    with Prefetcher(train_windows(dataset.train, seed=3, accumulation=Accumulation(1, 4), rank=0), 5) as made:
        for _ in range(5):
            [*eval_batches(dataset.validation, per_device=2, rank=0, size=1)]
            next(made)


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_micro_batches_are_begun_ahead(ahead: int) -> None:
    begun: list[int] = []
    done: list[int] = []

    class Recorded(custom.CustomSplit):
        @property
        def ahead(self) -> int:
            return ahead

        def start(self, indices: Any, epoch: int, rows: int) -> Callable[[], Batch]:
            finish, number = super().start(indices, epoch, rows), len(begun)
            begun.append(number)
            return lambda: (done.append(number), finish())[1]  # type: ignore[func-returns-value]

    split = Recorded(**vars(prepared(plain, 0).train))
    windows = train_windows(split, seed=3, accumulation=Accumulation(1, 3, ((0, 2),)), rank=0)
    for number in range(1, 6):
        next(windows)
        assert done == [*range(2 * number)]
        assert len(begun) == 2 * number + ahead
    begun.clear()
    assert len([*eval_batches(split, per_device=4, rank=0, size=1)]) == len(begun) == 6


def test_all_processes_start_before_the_first_call() -> None:
    before = {child.pid for child in psutil.Process().children()}
    workers = Workers(3, None)
    started = {child.pid for child in psutil.Process().children()} - before
    assert len(started) == 3
    workers.close()
    assert not started & {*psutil.pids()}
    workers.close()


def test_a_forgotten_data_set_ends_its_workers() -> None:
    before = {child.pid for child in psutil.Process().children()}
    dataset = prepared(plain, 2)
    children = [child for child in psutil.Process().children() if child.pid not in before]
    assert len(children) == 2
    del dataset
    assert not psutil.wait_procs(children, timeout=60)[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_is_an_error(number: int) -> None:
    class Deadly:
        def __len__(self) -> int:
            return N

        def __getitem__(self, index: int) -> Any:
            if index == 8:
                os.kill(os.getpid(), number)
            return {"x": float(index), "labels": index}

    workers = Workers(2, Deadly())
    waiting = [workers.start(_read, index) for index in range(N)]
    with pytest.raises(
        DataError, match=r"dataloader_num_workers: a worker process ended while it drew samples"
    ):
        [each() for each in waiting]
    with pytest.raises(DataError, match=r"a worker process ended"):
        workers.start(_read, 0)()


def _read(dataset: Any, index: int) -> Any:
    return dataset[index]


PROGRAM = """
import os, time
from hvdtrain.core.data.workers import Workers

def work(shared, seconds):
    time.sleep(seconds)
    return os.getpid()

workers = Workers(2, None)
import psutil
print(*[child.pid for child in psutil.Process().children()], flush=True)
waiting = [workers.start(work, 0.2) for _ in range(4)]
"""
ENDINGS: dict[str, Callable[[subprocess.Popen[str]], object]] = {
    "": lambda program: None,
    "raise ValueError('mine')": lambda program: None,
    "os._exit(3)": lambda program: None,
    "time.sleep(600)": lambda program: program.kill(),
    "time.sleep(601)": lambda program: program.terminate(),
    "time.sleep(602)": lambda program: os.killpg(program.pid, signal.SIGINT),
    # Ctrl-C while the pool takes a call: it knows of the call, and no process will get it.
    "def put(number): raise KeyboardInterrupt\nworkers._pool._work_ids.put = put\nworkers.start(work, 0)": (
        lambda program: None
    ),
}


@pytest.mark.parametrize(("ending", "end"), ENDINGS.items(), ids=range(len(ENDINGS)))
def test_no_worker_outlives_its_parent(ending: str, end: Callable[[subprocess.Popen[str]], object]) -> None:
    check_ends(PROGRAM + ending, end)


# The second process that is forked takes a second to begin.
SLOWLY = """
import os, time
forks = []
os.register_at_fork(before=lambda: forks.append(0), after_in_child=lambda: time.sleep(len(forks) - 1))
"""


def test_an_interrupt_is_not_heard_by_a_worker_that_has_not_begun() -> None:
    check_ends(SLOWLY + PROGRAM + "time.sleep(602)", ENDINGS["time.sleep(602)"])


def check_ends(program_text: str, end: Callable[[subprocess.Popen[str]], object]) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", program_text],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background ignores it, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert program.stdout is not None
    pids = [int(pid) for pid in program.stdout.readline().split()]
    assert len(pids) == 2
    end(program)
    # Ends once the workers, which have its outputs, are gone as well.
    _, errors = program.communicate(timeout=120)
    _wait_until(lambda: not any(map(_is_alive, pids)))
    # Of an interrupt or an error only one process speaks.
    assert errors.count("Traceback") <= 1, errors


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.05)
