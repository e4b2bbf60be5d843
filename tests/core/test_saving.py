"""What saving and resuming hold in memory: of all the arrays, a bucket's at most at a time."""

from __future__ import annotations

import errno
import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from hvdtrain.core.checkpoints.arrays import write_arrays
from hvdtrain.core.checkpoints.background import BackgroundWriter
from hvdtrain.core.checkpoints.finding import AUTO, check_whole
from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.checkpoints.rank_files import rank_file
from hvdtrain.core.checkpoints.state import load_state
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.families.initializers import ZEROS
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.resume import resume
from hvdtrain.core.run.saving import save
from hvdtrain.core.run.state import RunState
from hvdtrain.core.run.world import World
from hvdtrain.core.spec.job_spec import load_spec
from hvdtrain.core.update.accumulation import resolve_accumulation
from hvdtrain.core.update.buckets import plan_buckets
from tests.core.dropin.test_loop_checkpoints import on_each
from tests.core.older_formats import make_format_2

# Two weights a bucket, of 1 MB together.
WEIGHTS = tuple(Weight(f"layer{i}.weight", (64, 1024), True, ZEROS) for i in range(32))
BUCKETS = plan_buckets(WEIGHTS, itemsize=8, cap_bytes=2**20)
BUCKET_BYTES = 2**20
GENERATOR = "generator.framework.cpu"
ALL_BYTES = len(WEIGHTS) * 64 * 1024 * 8
STATE = RunState(step=4, windows=4, samples_consumed=16)


class Weights:
    """Makes each weight when it is read, and forgets what it is given."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def read(self, weights: Any = None) -> Iterator[tuple[str, np.ndarray]]:
        for number, weight in enumerate(weights or WEIGHTS):
            yield weight.name, np.full(weight.shape, float(number))

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.written += arrays


class Moments:
    """Gathers a bucket when its moments are read, as a sharded optimizer does."""

    def __init__(self) -> None:
        self.gathered, self.written = 0, {}

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        for bucket in BUCKETS:
            for moment in ("exp_avg", "exp_avg_sq"):
                yield from self._read(bucket, moment)

    def _read(self, bucket: Any, moment: str) -> Iterator[tuple[str, np.ndarray]]:
        self.gathered += 1
        whole = np.full(bucket.size, float(self.gathered))
        for weight, part in zip(bucket.weights, np.split(whole, len(bucket.weights)), strict=True):
            yield f"{weight.name}.{moment}", part.reshape(weight.shape)

    def write(self, arrays: Iterable[tuple[str, np.ndarray]], updates: int) -> None:
        for name, array in arrays:
            self.written[name] = float(array.mean())
        assert updates == STATE.step


def run_of(rank: int, ranks: int = 2, broadcast: Any = lambda values, name: values, *sets: str) -> Any:
    spec = load_spec("bert", ["model.dtype=float64", "zero_stage=1", *sets])
    world = World(rank, ranks, rank, ranks, 8)
    return SimpleNamespace(
        spec=spec,
        plan=SimpleNamespace(buckets=BUCKETS, accumulation=resolve_accumulation(spec.batch, ranks)),
        ranks=Ranks(world, lambda values, name: values, broadcast, lambda data, name: [data] * ranks),
        framework=SimpleNamespace(name="torch", versions={}),
        dataset=SimpleNamespace(config={}, files={}, fingerprint="data", fingerprint_with=lambda place: ""),
        family=SimpleNamespace(hf_config=lambda model: {}, untrained=lambda model: ()),
        weights=WEIGHTS,
        adapter=SimpleNamespace(
            model=Weights(),
            optimizer=Moments(),
            reducer=SimpleNamespace(read=lambda: [{} for _ in BUCKETS]),
            generators=SimpleNamespace(
                read=lambda: {"cpu": np.arange(5)}, write=lambda states: None, seed=lambda seed: None
            ),
        ),
    )


class Residuals:
    """Makes a bucket's residual when it is read: 100 times its rank and its own number, throughout."""

    def __init__(self, rank: int) -> None:
        self.rank, self.written = rank, list[float]()

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        for number, bucket in enumerate(BUCKETS):
            yield {"residual": np.full(bucket.size, 100.0 * self.rank + number)}

    def write(self, states: list[dict[str, np.ndarray]]) -> None:
        for bucket, state in zip(BUCKETS, states, strict=True):
            assert state["residual"].shape == (bucket.size,)
            assert np.ptp(state["residual"]) == 0
            self.written.append(float(state["residual"][0]))


SAVED_ON = 4
WITH_RESIDUALS = ("zero_stage=0", "compression={type: topk, ratio: 0.02}")
ONE_BATCH = "batch={gradient_accumulation_steps: 1, global_batch_size: 8}"


def run_with_residuals(rank: int, ranks: int, broadcast: Any = None) -> Any:
    run = run_of(rank, ranks, broadcast, *WITH_RESIDUALS, ONE_BATCH)
    run.adapter.reducer = Residuals(rank)
    return run


def save_on_each(folder: Path, others: Path | None = None, writer: Any = None) -> tuple[list[Any], list[int]]:
    """What a save with residuals returns or raises on each rank, and the bytes of each sum over ranks.

    Args:
        folder: of the checkpoint.
        others: the same on ranks other than 0.
        writer: of rank 0.
    """
    sums: list[int] = []

    def act(ranks: Ranks) -> None:
        def sum_arrays(array: np.ndarray, name: str) -> np.ndarray:
            sums.append(array.nbytes)
            return ranks.sum_arrays(array, name)

        run = run_with_residuals(ranks.rank, SAVED_ON)
        run.ranks = replace(ranks, sum_arrays=sum_arrays)
        if ranks.rank:
            save(run, others or folder, STATE)
        else:
            save(run, folder, STATE, None, writer)

    return on_each(SAVED_ON, act), sums


class Tape:
    """What rank 0 broadcasts, for another rank to receive."""

    def __init__(self) -> None:
        self.messages: list[np.ndarray] = []

    def send(self, values: np.ndarray, name: str) -> np.ndarray:
        self.messages.append(values.copy())
        return values

    def receive(self, values: np.ndarray, name: str) -> np.ndarray:
        return self.messages.pop(0)


def peak_of(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("stage", "takes_part"), [(1, True), (0, False)])
def test_saving_holds_one_bucket_of_moments_on_every_rank(
    tmp_path: Path, stage: int, takes_part: bool
) -> None:
    tape = Tape()
    for rank, carry in enumerate((tape.send, tape.receive)):
        run, folder = run_of(rank, 2, carry, f"zero_stage={stage}"), tmp_path / str(rank) / "checkpoint-4"
        # Half a bucket for all that is no array.
        assert peak_of(lambda run=run, folder=folder: save(run, folder, STATE)) < 1.5 * BUCKET_BYTES
        # Without shards rank 0 alone reads them.
        assert run.adapter.optimizer.gathered == (rank == 0 or takes_part) * 2 * len(BUCKETS)
        assert folder.exists() == (rank == 0)
    assert 1.5 * BUCKET_BYTES < ALL_BYTES / 10


@pytest.mark.parametrize("seen", [True, False])
def test_no_rank_holds_the_residuals_of_others_and_each_file_has_those_of_its_own(
    tmp_path: Path, seen: bool
) -> None:
    folder = tmp_path / "out" / "checkpoint-4"
    with BackgroundWriter() as writer:
        saved: list[Any] = []
        others = folder if seen else tmp_path / "elsewhere" / "checkpoint-4"
        peak = peak_of(lambda: saved.append(save_on_each(folder, others, writer)))
    ((errors, sums),) = saved
    assert errors == [None] * SAVED_ON
    # Of all ranks together: rank 0's copy of weights and moments, and a few residuals of a bucket on each.
    assert peak < 3 * ALL_BYTES + SAVED_ON * 5 * BUCKET_BYTES < (3 + SAVED_ON - 1) * ALL_BYTES
    # Where all see the folder, nothing but small messages travels; else one residual at a time.
    assert max(sums) == (8 if seen else BUCKET_BYTES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["checkpoint-4", "latest"]
    manifest = check_whole(folder)
    assert manifest is not None
    for rank in range(SAVED_ON):
        assert rank_file(rank) in manifest.files
        own = load_file(folder / rank_file(rank))
        assert own.keys() == {f"compression.{i}.residual" for i in range(len(BUCKETS))} | {GENERATOR}
        for number, bucket in enumerate(BUCKETS):
            expected = np.full(bucket.size, 100.0 * rank + number)
            np.testing.assert_array_equal(own[f"compression.{number}.residual"], expected)
    assert not load_file(folder / "compression.safetensors")


def test_moments_of_local_updates_are_each_ranks_own(tmp_path: Path) -> None:
    policy = "compression={type: local_sgd, sync_every: 2}"
    run = run_of(0, SAVED_ON, Tape().send, "zero_stage=0", policy)
    folder = tmp_path / "checkpoint-4"
    with BackgroundWriter() as writer:
        peak = peak_of(lambda: save(run, folder, STATE, None, writer))
    # A copy of the weights stays until it is written.
    assert peak < ALL_BYTES + 6 * BUCKET_BYTES
    for rank in range(SAVED_ON):
        own = load_file(folder / rank_file(rank))
        assert own.keys() == {f"optimizer.{name}" for name, _ in Moments().read()} | {GENERATOR}
    state = load_state(folder, check_whole(folder))
    assert not state.moments
    assert {*state.moment_shapes.values()} == {(SAVED_ON, *WEIGHTS[0].shape)}


@pytest.mark.parametrize(("seen", "full"), [(True, 2), (False, 0)])
def test_what_a_rank_cannot_write_is_told_on_every_rank_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: bool, full: int
) -> None:
    def write(path: Path, stream: Any) -> Any:
        if path.name != rank_file(2):
            return write_arrays(path, stream)
        next(iter(stream.arrays))
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hvdtrain.core.checkpoints.rank_files.write_arrays", write)
    # As little as looking for it succeeds there.
    others = None if seen else tmp_path / ("x" * 300) / "checkpoint-4"
    errors, _ = save_on_each(tmp_path / "checkpoint-4", others)
    assert {type(error) for error in errors} == {CheckpointError}
    expected = f"checkpoint-4: the model could not be saved: rank {full}: [Errno 28] No space left"
    assert all(expected in str(error) for error in errors)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint with residuals as it is written today, and as an earlier version wrote it.

    A file of a rank that has saved neither lies beside theirs, as where somebody has copied one over another.
    """
    root = tmp_path_factory.mktemp("saved")
    save_on_each(root / "checkpoint-4")
    make_format_2(shutil.copytree(root / "checkpoint-4", root / "before"))
    for place in ("before", "checkpoint-4"):
        shutil.copyfile(root / "checkpoint-4" / rank_file(SAVED_ON - 1), root / place / rank_file(SAVED_ON))
    return {"today": root / "checkpoint-4", "format 2": root / "before"}


@pytest.mark.parametrize("layout", ["today", "format 2"])
@pytest.mark.parametrize("ranks", [SAVED_ON, 2, 1])
def test_resuming_gives_each_rank_its_own_residuals_alone(
    saved: dict[str, Path], tmp_path: Path, ranks: int, layout: str
) -> None:
    folder = saved[layout]
    # Messages lie on disk meanwhile, where they are no memory.
    with (tmp_path / "messages").open("w+b") as tape:

        def send(values: np.ndarray, name: str) -> np.ndarray:
            tape.write(values.data)
            return values

        def receive(values: np.ndarray, name: str) -> np.ndarray:
            tape.readinto(values.data)
            return values

        for rank in sorted({0, ranks - 1}):
            tape.seek(0)
            run = run_with_residuals(rank, ranks, receive if rank else send)
            place = tmp_path / "only rank 0 reads it" if rank else folder
            # Its own, and a bucket on its way as messages and as arrays.
            assert peak_of(lambda run=run, place=place: resume(run, place)) < ALL_BYTES + 12 * BUCKET_BYTES
            for bucket, found in enumerate(run.adapter.reducer.written):
                total = sum(100.0 * each + bucket for each in range(SAVED_ON))
                assert found == (100.0 * rank + bucket if ranks == SAVED_ON else total / ranks)


@pytest.mark.parametrize("auto", [False, True])
def test_resuming_holds_a_few_arrays_on_every_rank(tmp_path: Path, auto: bool) -> None:
    folder, messages = tmp_path / "checkpoint-4", []
    save(run_of(0), folder, STATE)
    saved = load_state(folder).moments

    def send(values: np.ndarray, name: str) -> np.ndarray:
        # What the other rank is to get; all it needs to know is how long it is, and where a pattern repeats.
        messages.append(values.copy() if values.size < 1000 else (values.size, values[:8].tobytes()))
        return values

    def receive(values: np.ndarray, name: str) -> np.ndarray:
        message = messages.pop(0)
        if isinstance(message, np.ndarray):
            return message
        assert values.size == message[0]
        values.reshape(-1, 8)[:] = np.frombuffer(message[1], np.uint8)
        return values

    expected = {name: float(saved[name].mean()) for name in saved}
    for rank, carry in enumerate((send, receive)):
        run = run_of(rank, 2, carry)
        place = folder if rank == 0 else tmp_path / "only rank 0 reads it"
        if auto:
            run.output_dir, place = place.parent if rank == 0 else place, AUTO
        # The last one and the one on its way, each half a bucket.
        assert peak_of(lambda run=run, place=place: resume(run, place)) < 1.5 * BUCKET_BYTES
        assert run.adapter.model.written == [weight.name for weight in WEIGHTS]
        assert run.adapter.optimizer.written == expected
        assert [*run.adapter.optimizer.written] == [name for name, _ in Moments().read()]
    assert not messages


def test_moments_of_another_shape_are_refused_before_anything_is_changed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    save(run_of(0), folder, STATE)
    run = run_of(0)
    state = folder / "state.json"
    # As if its ranks had moments of their own; of an earlier version, whose files nobody has hashed.
    record = json.loads(state.read_text()) | {"format": 1, "applied": [4, 4]}
    state.write_text(json.dumps(record))
    (folder / "manifest.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"exp_avg has shape \(64, 1024\) there, expected \(2, 64, 1024\)"
    ):
        resume(run, folder)
    assert not run.adapter.model.written
    assert load_model(folder).shapes == {weight.name: weight.shape for weight in WEIGHTS}
