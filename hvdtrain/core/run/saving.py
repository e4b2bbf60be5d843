"""Saving a run: its model, and in a checkpoint all that it needs to go on."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from hvdtrain.core.checkpoints.arrays import ArrayStream, Kind
from hvdtrain.core.checkpoints.background import BackgroundWriter
from hvdtrain.core.checkpoints.finding import point_to, step_of
from hvdtrain.core.checkpoints.manifest import SPEC_FILE, STATE_FILE, FileRecord, new_manifest
from hvdtrain.core.checkpoints.model_folder import (
    MODEL_DIR,
    UNTRAINED_FILE,
    WEIGHTS_FILE,
    copy_model,
    save_model,
    told,
)
from hvdtrain.core.checkpoints.rank_files import (
    COMPRESSION,
    GENERATORS,
    OPTIMIZER,
    make_parts,
    together,
    write_own,
)
from hvdtrain.core.checkpoints.retention import Retention, best_checkpoint, rotate
from hvdtrain.core.checkpoints.state import (
    COMPRESSION_FILE,
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
    """Write the model in Hugging Face layout, atomically; every rank calls it.

    Rank 0 writes it, and each rank what differs by rank (`write_own`). Checkpoints of the same run that its
    spec does not keep are deleted when a new one is on disk.

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
    writes = run.ranks.rank in writers
    streams, files, manifest = _streams(run, state, writes), dict(run.dataset.files), None
    parts: Mapping[Path, FileRecord] = {}
    if state:
        parts = _write_own(run, directory, _own(run, state), writer, writers)
        files[STATE_FILE] = _record(run, state).text()
        files[SPEC_FILE] = spec_text(run.spec)
        spec, found = FileRecord.of(files[SPEC_FILE].encode()).blake2b, metrics or {}
        name, versions = run.framework.name, run.framework.versions
        manifest = partial(new_manifest, state.step, name, run.ranks.size, found, spec, versions)
    if not writes:
        for stream in streams.values():
            # Goes through them and keeps none, not even until the next one is there.
            deque(stream.arrays, maxlen=0)
        return
    config = {**run.family.hf_config(run.spec.model), **run.dataset.config}
    if writer:
        streams = {name: stream.snapshot() for name, stream in streams.items()}
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


def _write_own(
    run: Run, directory: Path, own: ArrayStream, writer: BackgroundWriter | None, writers: Collection[int]
) -> dict[Path, FileRecord]:
    """Write what differs by rank, beside the checkpoint's place; an error is raised on every rank."""

    @told(directory)
    def begin() -> str:
        if writer:
            # Of two copies the first is written before the second is made.
            writer.wait()
        return make_parts(directory)

    parts = directory.with_name(together(run.ranks, begin))
    with told(directory):
        return write_own(run.ranks, parts, own, writers)


def _streams(run: Run, state: RunState | None, writes: bool) -> dict[str, ArrayStream]:
    """What files of arrays hold that is alike on all ranks, in the order in which all go through them.

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
        # After local updates moments are each rank's own.
        alike = not rules.at(state.step).local
        read = run.adapter.optimizer.read() if alike and takes_part else ()
        streams[OPTIMIZER_FILE] = ArrayStream(moment_kinds(run) if alike else {}, read)
        if writes:
            streams[COMPRESSION_FILE] = _compression(run, own=False)
    return streams


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


def _own(run: Run, state: RunState) -> ArrayStream:
    """What this rank has of its own."""
    residuals = _compression(run, own=True, prefix=COMPRESSION)
    generators = {f"{GENERATORS}{name}": a for name, a in run.adapter.generators.read().items()}
    kinds = {**ArrayStream.of(generators).kinds, **residuals.kinds}
    arrays = chain(generators.items(), residuals.arrays)
    if run.spec.rules.at(state.step).local:
        kinds |= {f"{OPTIMIZER}{name}": kind for name, kind in moment_kinds(run).items()}
        moments = ((f"{OPTIMIZER}{name}", array) for name, array in run.adapter.optimizer.read())
        arrays = chain(arrays, moments)
    return ArrayStream(kinds, arrays)


def _compression(run: Run, own: bool, prefix: str = "") -> ArrayStream:
    """The state of compression: what is this rank's own, or what is alike on all ranks."""
    policies = [run.spec.rules.policy(bucket) for bucket in run.plan.buckets]

    def read() -> Iterator[tuple[str, np.ndarray]]:
        for index, (policy, state) in enumerate(zip(policies, run.adapter.reducer.read(), strict=True)):
            for name, array in state.items():
                if (name in policy.residuals) == own:
                    yield f"{prefix}{index}.{name}", array

    # Read twice, since only the policies know the shapes of their states.
    return ArrayStream({name: Kind.of(array) for name, array in read()}, read())
