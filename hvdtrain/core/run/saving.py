"""Saving a run: its model, and in a checkpoint all that it needs to go on, gathered from all ranks."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from safetensors import numpy as safetensors

from hvdtrain.core.checkpoints.arrays import ArrayStream, Kind
from hvdtrain.core.checkpoints.background import BackgroundWriter
from hvdtrain.core.checkpoints.finding import point_to, step_of
from hvdtrain.core.checkpoints.manifest import (
    FORMAT,
    SPEC_FILE,
    STATE_FILE,
    FileRecord,
    Manifest,
)
from hvdtrain.core.checkpoints.model_folder import (
    MODEL_DIR,
    UNTRAINED_FILE,
    WEIGHTS_FILE,
    copy_model,
    save_model,
    write_parts,
)
from hvdtrain.core.checkpoints.retention import Retention, best_checkpoint, rotate
from hvdtrain.core.checkpoints.state import (
    COMPRESSION_FILE,
    GENERATORS_FILE,
    OPTIMIZER_FILE,
    TRAINING_FILES,
    Arrays,
    StateRecord,
    layout_of,
)
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.process.outputs import say
from hvdtrain.core.run.lock import check_still_locked
from hvdtrain.core.run.output_dir import spec_text
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.state import RunState
from hvdtrain.core.run.streams import moment_kinds, weight_kinds, weights_by_bucket


def save(
    run: Run,
    directory: Path,
    state: RunState | None = None,
    metrics: Mapping[str, float | None] | None = None,
    writer: BackgroundWriter | None = None,
    *,
    retention: Retention | None = None,
    writers: Collection[int] = (0,),
) -> None:
    """Write the model in Hugging Face layout, atomically; every rank calls it, and rank 0 alone writes.

    Checkpoints of the same run that its spec does not keep are deleted when a new one is on disk.

    Args:
        run: on this rank.
        directory: replaced when it exists.
        state: where the run stands, for a checkpoint to go on from; None: the model alone.
        metrics: of this state, which the checkpoint's manifest shows.
        writer: writes a copy of everything in the background, but for what differs by rank, which is written
            now; None: all is written now, without a copy.
        retention: which checkpoints beside this one are kept; None: those that the spec says.
        writers: the ranks that write it, each into a directory of its own.

    Raises:
        CheckpointError: it cannot be written, or the writer could not write the one before.
    """
    if writer:
        # Of two copies the first is written before the second is made.
        writer.wait()
    writes = run.ranks.rank in writers
    streams, files, manifest = _streams(run, state, writes), dict(run.dataset.files), None
    if state:
        files[STATE_FILE] = _record(run, state).text()
        files[SPEC_FILE] = spec_text(run.spec)
        manifest = partial(_manifest, run, state.step, metrics or {})
    if not writes:
        for stream in streams.values():
            # Goes through them and keeps none, not even until the next one is there.
            deque(stream.arrays, maxlen=0)
        return
    config = {**run.family.hf_config(run.spec.model), **run.dataset.config}
    parts: Mapping[Path, FileRecord] = {}
    if writer:
        # All ranks' may be many times the model. They come last.
        own = {name: streams.pop(name) for name in _by_rank(run, state) if streams[name].kinds}
        streams = {name: stream.snapshot() for name, stream in streams.items()}
        parts = write_parts(directory, own) if own else {}
    write = partial(save_model, directory, streams, config, files, manifest, parts)
    if state:
        retention = retention or Retention.of_spec(run.spec.checkpointing)
        write = partial(_write_checkpoint, directory, write, retention)
    if writer:
        writer.submit(write)
    else:
        write()


def save_final_model(run: Run, state: RunState, metrics: Mapping[str, float | None]) -> None:
    """Write the model of a run's end: the last one, or with `load_best_model_at_end` the best one.

    Args:
        run: on this rank; every rank calls it, when all checkpoints but that of the end are on disk.
        state: at the end.
        metrics: of this state.

    Raises:
        CheckpointError: it cannot be written.
    """
    directory, best = run.output_dir / MODEL_DIR, None
    if run.spec.checkpointing.load_best_model_at_end:
        retention = Retention.of_spec(run.spec.checkpointing)
        if run.ranks.is_chief:
            best = best_checkpoint(run.output_dir, retention, {state.step: metrics}, say)
        if run.ranks.broadcast(np.array([best is not None]))[0]:
            if best is not None:
                copy_model(best, directory, TRAINING_FILES)
                say(f"{directory} is the model of {best.name}, the best by {retention.metric}")
            return
    save(run, directory)


def _write_checkpoint(directory: Path, write: Callable[[], None], retention: Retention) -> None:
    write()
    # A rank 0 that was frozen meanwhile may have been replaced: what stands there is the other's.
    check_still_locked(directory.parent)
    point_to(directory)
    rotate(directory.parent, retention, step_of(directory))


def order_of(run: Run, fingerprint: str | None = None) -> str:
    """A text that is equal where runs use the same samples in the same order.

    Args:
        run: on this rank.
        fingerprint: of the data; None: that of the run's own.
    """
    return json.dumps({"seed": run.spec.seed, "data": fingerprint or run.dataset.fingerprint})


def _by_rank(run: Run, state: RunState | None) -> list[str]:
    """Files that hold arrays of every rank, in the order of `_streams`."""
    if state is None:
        return []
    return [*[OPTIMIZER_FILE] * run.spec.rules.at(state.step).local, COMPRESSION_FILE]


def _streams(run: Run, state: RunState | None, writes: bool) -> dict[str, ArrayStream]:
    """What each file of arrays holds, in the order in which all ranks go through them; made here alone.

    A rank that has no part in a file has a stream without arrays.
    """
    model, rules = run.spec.model, run.spec.rules
    takes_part = writes or rules.sharded
    counts: Arrays = getattr(run.family, "counts", lambda model: {})(model)
    # Counts come first, since they do so in the file.
    weights = chain(counts.items(), run.adapter.model.read(weights_by_bucket(run))) if takes_part else ()
    streams = {WEIGHTS_FILE: ArrayStream({**ArrayStream.of(counts).kinds, **weight_kinds(run)}, weights)}
    if untrained := run.family.untrained(model):
        arrays = initial_weights(untrained, run.spec.seed, model.dtype)
        streams[UNTRAINED_FILE] = ArrayStream.of(arrays)
    if state:
        moments, local = moment_kinds(run), rules.at(state.step).local
        if local:
            moments = {n: Kind((run.ranks.size, *shape), dtype) for n, (shape, dtype) in moments.items()}
        read = _moments(run) if local else run.adapter.optimizer.read() if takes_part else ()
        streams[OPTIMIZER_FILE] = ArrayStream(moments, read)
        streams[COMPRESSION_FILE] = _residuals(run)
        streams[GENERATORS_FILE] = _generators(run)
    return streams


def _manifest(
    run: Run, step: int, metrics: Mapping[str, float | None], files: Mapping[str, FileRecord]
) -> Manifest:
    return Manifest(
        format=FORMAT,
        step=step,
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
        framework=run.framework.name,
        ranks=run.ranks.size,
        metrics=metrics,
        spec=files[SPEC_FILE].blake2b,
        versions=run.framework.versions,
        files=files,
    )


def _record(run: Run, state: RunState) -> StateRecord:
    """Where the run stands; every rank calls it."""
    rules, buckets = run.spec.rules, run.plan.buckets
    applied: tuple[int, ...] = ()
    if rules.at(state.step).local:
        counts = np.zeros(run.ranks.size)
        counts[run.ranks.rank] = state.applied
        applied = tuple(int(n) for n in run.ranks.sum(counts))
    stands = replace(state, applied=0, loss_scale=state.loss_scale.saved())
    return StateRecord(stands, len(buckets), layout_of(buckets, rules), order_of(run), applied)


def _moments(run: Run) -> Iterator[tuple[str, np.ndarray]]:
    """The moments after local updates, which are each rank's own."""
    for name, array in run.adapter.optimizer.read():
        yield from _rows(run.ranks, name, array)


def _residuals(run: Run) -> ArrayStream:
    """The state of compression: what differs by rank from all of them, the rest as it is."""
    policies = [run.spec.rules.policy(bucket) for bucket in run.plan.buckets]

    def read() -> Iterator[tuple[str, np.ndarray, bool]]:
        for index, (policy, state) in enumerate(zip(policies, run.adapter.reducer.read(), strict=True)):
            for name, array in state.items():
                yield f"{index}.{name}", array, name in policy.residuals

    ranks = run.ranks
    # Read twice, since only the policies know the shapes of their states.
    kinds = {n: Kind((*[ranks.size] * by_rank, *a.shape), a.dtype) for n, a, by_rank in read()}
    arrays = (_rows(ranks, n, a) if by_rank else [(n, a)] for n, a, by_rank in read())
    return ArrayStream(kinds, chain.from_iterable(arrays))


def _generators(run: Run) -> ArrayStream:
    """The states of every rank's random generators, as `RANK.NAME`."""
    every = run.ranks.gather(safetensors.save(run.adapter.generators.read()))
    states = enumerate(map(safetensors.load, every))
    # The library reads them in an order of its own.
    named = {f"{rank}.{name}": array for rank, state in states for name, array in sorted(state.items())}
    return ArrayStream.of(named)


def _rows(ranks: Ranks, name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Every rank's array, one at a time: the parts of one with a first axis of ranks."""
    for rank in range(ranks.size):
        mine = array if rank == ranks.rank else np.zeros_like(array)
        yield name, ranks.sum(mine.reshape(-1)).reshape(1, *array.shape)
