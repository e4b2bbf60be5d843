"""Going on from a checkpoint: rank 0 reads it and gives the other ranks what they need."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.core.checkpoints.finding import AUTO, Found, check_whole, newest_whole
from hvdtrain.core.checkpoints.manifest import Manifest
from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.checkpoints.sharing import share_moments, share_of, total
from hvdtrain.core.checkpoints.state import MOMENTS, Arrays, TrainingState, layout_of, load_state
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.process.outputs import say
from hvdtrain.core.random import framework_seed
from hvdtrain.core.run.output_dir import check_begins_anew
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.saving import order_of
from hvdtrain.core.run.spec_changes import check_changes
from hvdtrain.core.run.state import RunState
from hvdtrain.core.run.streams import from_chief, moment_kinds, set_weights
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.core.update.precision import LossScale


def resume(
    run: Run,
    directory: Path,
    allow_changes: Collection[str] = (),
    verified: Found | None = None,
) -> RunState | None:
    """Give every rank what a checkpoint holds; every rank calls it, and only rank 0 reads the directory.

    Args:
        run: on this rank; its adapter may hold any weights, and has those of the checkpoint afterwards.
        directory: a `checkpoint-N`, or `AUTO`.
        allow_changes: fields in which the spec may differ from that of the checkpoint's run.
        verified: on rank 0, the checkpoint where every byte of it has been compared already.

    Returns:
        Where the run goes on; None with `AUTO` where there is nothing to go on from.

    Raises:
        CheckpointError: it is damaged, or belongs to another model, data set, compression or spec; or `AUTO`
            finds none in the output directory of another run.
    """
    ranks, training = run.ranks, None
    weights: Mapping[str, np.ndarray] = {}
    found = verified or _find(run, directory) if ranks.is_chief else None
    if directory == AUTO and not ranks.broadcast(np.array([found is not None]))[0]:
        return None
    # Other ranks look at neither.
    directory, manifest = found or (directory, None)
    if ranks.is_chief:
        training, weights = load_state(directory, manifest), load_model(directory)
        _check(run, directory, training, weights.shapes)
        check_changes(run, directory, manifest, allow_changes)
    set_weights(run, lambda weight: weights[weight.name])
    position = ranks.broadcast(_numbers(training.record.run if training else RunState()))
    state = _state(position, LossScale.of_spec(run.spec))
    state = replace(state, applied=_load_moments(run, training))
    own = [_own_residuals(run, training, bucket) for bucket in run.plan.buckets]
    if any(own):
        run.adapter.reducer.write(own)
    _restore_generators(run, directory, manifest, training, state.step)
    return state


def _find(run: Run, directory: Path) -> Found | None:
    """The checkpoint to go on from, of which every byte has been verified, and its manifest."""
    if directory == AUTO:
        found = newest_whole(run.output_dir, say)
        if found is None:
            check_begins_anew(run.output_dir, run.spec)
    else:
        try:
            found = directory, check_whole(directory)
        except CheckpointError as error:
            advice = "take another checkpoint, or let --resume auto find one"
            raise CheckpointError(f"--resume {error}; {advice}") from None
    if found and found[1] is None:
        say(f"{found[0]} has format 1, without a manifest: its files cannot be verified")
    return found


def _restore_generators(
    run: Run, directory: Path, manifest: Manifest | None, training: TrainingState | None, step: int
) -> None:
    """Give this rank's random generators their states, or new ones where it has others."""
    ranks, generators = run.ranks, run.adapter.generators
    here = run.framework.name, ranks.size
    same = manifest is not None and (manifest.framework, manifest.ranks) == here
    states = _mine(ranks, lambda rank: training.generators(rank) if training and same else {})
    if {n: a.shape for n, a in states.items()} == {n: a.shape for n, a in generators.read().items()}:
        generators.write(states)
        return
    generators.seed(framework_seed(run.spec.seed, ranks.rank, step))
    if ranks.is_chief:
        there = f"{manifest.framework} on {manifest.ranks} rank(s)" if manifest else "an earlier version"
        why = "has other random generators" if same else f"was saved by {there}, not {here[0]} on {here[1]}"
        say(f"{directory} {why}: dropout is drawn from seed, rank and step")


def _numbers(state: RunState) -> np.ndarray:
    scale, place = state.loss_scale, (state.step, state.windows, state.samples_consumed)
    # In float64 counts are exact up to 2^53.
    skips = (state.skipped_updates, state.empty_updates)
    return np.array([scale.value, scale.good_updates, *place, *skips], np.float64)


def _state(numbers: np.ndarray, scale: LossScale) -> RunState:
    good_updates, step, windows, samples_consumed, skipped, empty = (int(n) for n in numbers[1:])
    return RunState(
        step=step,
        windows=windows,
        samples_consumed=samples_consumed,
        skipped_updates=skipped,
        empty_updates=empty,
        loss_scale=scale.restored(float(numbers[0]), good_updates),
    )


def _load_moments(run: Run, training: TrainingState | None) -> int:
    """Give every rank its moments; returns the updates that this rank's optimizer counts."""
    ranks = run.ranks
    shares = share_moments(training.record, run.spec.rules, ranks.size) if training else []
    counts = ranks.broadcast_arrays({"applied": np.array([n for _, n in shares], np.int64)})["applied"]
    own = ranks.rank if len(counts) > 1 else 0

    def find(index: int, name: str) -> np.ndarray:
        assert training
        if not (whose := shares[index][0]):
            return training.moments[name]
        every = training.own_moments(name)
        return total([every[rank] for rank in whose]) / len(whose)

    def moments() -> Iterator[tuple[str, np.ndarray]]:
        for name, kind in moment_kinds(run).items():
            # One rank's after the other, so that nobody but rank 0 holds those of all.
            for index in range(len(counts)):
                array = from_chief(ranks, kind, partial(find, index, name))
                if index == own:
                    mine = array
            yield name, mine

    run.adapter.optimizer.write(moments(), int(counts[own]))
    return int(counts[own])


def _own_residuals(run: Run, training: TrainingState | None, bucket: Bucket) -> Arrays:
    """This rank's state of a bucket's compression; no rank holds all ranks' residuals."""
    ranks, policy = run.ranks, run.spec.rules.policy(bucket)
    rows = training.residuals(bucket.index, policy.residuals) if training else {}
    same = bool(ranks.broadcast(np.array([any(len(each) == ranks.size for each in rows.values())]))[0])
    alike = training.alike(bucket.index, policy.residuals) if training else {}
    if not same:
        alike |= {name: total(each) for name, each in rows.items()}
    own = ranks.broadcast_arrays(alike)
    if same:
        own |= _mine(ranks, lambda rank: {name: each[rank]() for name, each in rows.items()})
    for name in () if same else policy.residuals & own.keys():
        own[name] = share_of(policy, name, own[name], ranks.rank, ranks.size)
    # What has travelled cannot be written to.
    return {name: array.copy() for name, array in own.items()}


def _mine(ranks: Ranks, read: Callable[[int], Arrays]) -> Arrays:
    """What rank 0 reads for this rank; one rank's arrays travel after the other's, and others drop them."""
    for rank in range(ranks.size):
        found = ranks.broadcast_arrays(read(rank) if ranks.is_chief else {})
        if rank == ranks.rank:
            mine = found
    return mine


def _same_tokens(run: Run, directory: Path, training: TrainingState) -> bool:
    """Whether a checkpoint's run had the same tokens, from a tokenizer file that only says it otherwise."""
    try:
        fingerprint = run.dataset.fingerprint_with(directory)
    except OSError:
        return False
    return training.record.order == order_of(run, fingerprint)


def _check(run: Run, directory: Path, training: TrainingState, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for weight in run.weights:
        if weight.name not in shapes:
            raise CheckpointError(
                f"--resume {directory}: it has no {weight.name}, which the model has: resume with the model "
                "section it was trained with (in the other framework, a model of your own needs model.names)"
            )
        if shapes[weight.name] != weight.shape:
            raise CheckpointError(
                f"--resume {directory}: {weight.name} has shape {shapes[weight.name]} there and "
                f"{weight.shape} in the spec: resume with the model section it was trained with"
            )
    counts: Arrays = getattr(run.family, "counts", lambda model: {})(run.spec.model)
    if more := sorted(shapes.keys() - counts.keys() - {weight.name for weight in run.weights}):
        raise CheckpointError(
            f"--resume {directory}: it has {more[0]}, which the model has not: resume with the model section "
            "it was trained with"
        )
    _check_moments(run, directory, training)
    if training.record.order != order_of(run) and not _same_tokens(run, directory, training):
        raise CheckpointError(
            f"--resume {directory}: its run had another seed or other data ({training.record.order}; now "
            f"{order_of(run)}): samples would be repeated or left out; take its spec.json"
        )
    layout = layout_of(run.plan.buckets, run.spec.rules)
    if training.is_compressed and _with_state(training.record.layout) != _with_state(layout):
        raise CheckpointError(
            f"--resume {directory}: its residuals belong to another compression or other buckets: keep "
            "compression, communication.bucket_cap_mb, zero_stage and model.dtype as in its run's spec.json"
        )


def _with_state(layout: str) -> list[Any]:
    """A layout in which buckets without residuals are alike: `rows` goes by the number of ranks."""
    return [[p if p["type"] not in ("none", "rows") else None, names] for p, names in json.loads(layout)]


def _check_moments(run: Run, directory: Path, training: TrainingState) -> None:
    kind, kept = run.spec.optimizer.type, MOMENTS[run.spec.optimizer.type]
    shapes, ranks = training.moment_shapes, len(training.record.applied)
    expected = {name: (*[ranks] * (ranks > 0), *k.shape) for name, k in moment_kinds(run).items()}
    if expected.keys() - shapes.keys():
        found = sorted({name.rpartition(".")[2] for name in shapes})
        raise CheckpointError(
            f"--resume {directory}: optimizer.type {kind} goes on from {' and '.join(kept)} of each weight, "
            f"and there is {' and '.join(found)}: resume with the optimizer it was trained with"
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(
                f"--resume {directory}: {name} has shape {shapes[name]} there, expected {shape}: its "
                "files are of two checkpoints"
            )
