"""What every rank takes of a checkpoint of a loop of the user's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from hvdtrain.core.checkpoints.rank_files import COMPRESSION, GENERATORS, named_after, rank_file
from hvdtrain.core.checkpoints.sharing import share_of
from hvdtrain.core.checkpoints.state import Arrays
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.data.seeding import read_generators, seed_generators, write_generators
from hvdtrain.core.dropin.saved import LoopCheckpoint, say
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.random import framework_seed
from hvdtrain.core.run.adapter import GeneratorState

_GLOBAL_GENERATORS = "generator.global."


@dataclass(frozen=True)
class Restored:
    """What a loop of the user's own goes on with.

    Attributes:
        step: that was given to `save`.
        extra: likewise.
    """

    step: int
    extra: Any = None


class CompressionState(Protocol):
    """This rank's state of each bucket's compression, as the frameworks' drivers keep it."""

    @property
    def states(self) -> Sequence[tuple[Policy, Mapping[str, Any]]]:
        """Each bucket's policy and its state, arrays by name."""
        ...

    def write(self, states: Sequence[Arrays]) -> None:
        """Set the states."""
        ...


def restore_compression(checkpoint: LoopCheckpoint, today: CompressionState) -> None:
    """Give this rank its state of each bucket's compression; every rank calls it.

    Where the number of ranks has changed each has its share (`share_of`). Where nothing was saved, as
    without compression, states stay as they begin.

    Args:
        checkpoint: with the same layout.
        today: of this rank.
    """
    if not _compressed(checkpoint):
        return
    rank, size = checkpoint.ranks.rank, checkpoint.ranks.size
    found: list[Arrays] = []
    for i, (policy, state) in enumerate(today.states):
        own: Arrays = {}
        for name in state:
            path = compression_name(i, name)
            if name not in policy.residuals:
                own[name] = checkpoint.read(rank_file(0), path)
            elif checkpoint.same_ranks:
                own[name] = checkpoint.mine(path)
            else:
                own[name] = share_of(policy, name, checkpoint.total(path), rank, size)
        found.append(own)
    today.write(found)


def compression_name(bucket: int, name: str) -> str:
    """What an array of a bucket's compression state is called in a rank's file."""
    return f"{COMPRESSION}{bucket}.{name}"


def restore_generators(checkpoint: LoopCheckpoint, framework: GeneratorState, seed: int) -> None:
    """Give this rank's random generators their states, or start them again where others saved; all call it.

    Args:
        checkpoint: with `own_generators` in each rank's file.
        framework: the framework's generators.
        seed: what they start from otherwise, with rank and step.
    """
    rank, step = checkpoint.ranks.rank, checkpoint.record["step"]
    saved = {name: tuple(shape) for name, shape in checkpoint.shapes[rank_file(0)].items()}
    today = {name: array.shape for name, array in own_generators(framework).items()}
    if checkpoint.same_ranks and today == {name: saved.get(name) for name in today}:
        states = {name: checkpoint.mine(name) for name in today}
        framework.write(named_after(states, GENERATORS))
        write_generators(named_after(states, _GLOBAL_GENERATORS))
        return
    seed_generators(seed, rank, step)
    framework.seed(framework_seed(seed, rank, step))
    if checkpoint.ranks.is_chief:
        say(
            f"{checkpoint.directory} was saved on {checkpoint.saved_ranks} rank(s), or with other random "
            "generators: dropout is drawn from seed, rank and step"
        )


def own_generators(framework: GeneratorState) -> Arrays:
    """The states of this rank's generators, the framework's, Python's and NumPy's, as they are saved."""
    found = {f"{GENERATORS}{name}": array for name, array in framework.read().items()}
    return found | {f"{_GLOBAL_GENERATORS}{name}": array for name, array in read_generators().items()}


def check_fits(
    checkpoint: LoopCheckpoint,
    weights: Mapping[str, tuple[int, ...]],
    layout: str | None,
    order: Mapping[str, Any] | None,
) -> None:
    """Refuse a checkpoint of another model, compression or order of data.

    Args:
        checkpoint: it.
        weights: shapes of the model's weights, by name.
        layout: of the compression's buckets (`layout_of`); None: nothing is compressed.
        order: of the loader's samples; None: it is not known.

    Raises:
        CheckpointError: naming the first difference and what to do.
    """
    where, record = checkpoint.directory, checkpoint.record
    saved = {name: tuple(shape) for name, shape in checkpoint.shapes[WEIGHTS_FILE].items()}
    for name in [*weights, *saved]:
        if saved.get(name) != weights.get(name):
            raise CheckpointError(
                f"{where}: was saved with other weights: {name} has shape {saved.get(name)} there and "
                f"{weights.get(name)} in the model (None: it has none); build the model that was saved"
            )
    if _compressed(checkpoint) and record["layout"] != layout:
        raise CheckpointError(
            f"{where}: was saved with other compression or bucket_cap_mb, and its residuals do not fit: keep "
            "those"
        )
    if record["order"] and record["order"] != (order and dict(order)):
        raise CheckpointError(
            f"{where}: was saved with other data ({_shown(record['order'])}; now {_shown(order)}): samples "
            "would be repeated or left out; keep the dataset, seed and shuffle"
        )


def check_objects(checkpoint: LoopCheckpoint, today: Collection[str]) -> None:
    """Refuse a checkpoint of other objects: the state of one that is left out would be lost in silence.

    Args:
        checkpoint: it.
        today: names of the objects that have a state.

    Raises:
        CheckpointError: naming the first one and what to do.
    """
    for name in sorted({*checkpoint.record["objects"]} ^ {*today}):
        raise CheckpointError(
            f"{checkpoint.directory}: was saved without {name}: leave it out, or save with it"
            if name in today
            else f"{checkpoint.directory}: was saved with {name}, whose state would be lost: give Checkpoint "
            f"{name}, too"
        )


def _shown(order: Mapping[str, Any] | None) -> str:
    if not order:
        return "no loader or dataset of hvdtrain's"
    return ", ".join(f"{name} {value}" for name, value in order.items())


def _compressed(checkpoint: LoopCheckpoint) -> bool:
    """Whether it has states of compression."""
    return bool(named_after(checkpoint.shapes[rank_file(0)], COMPRESSION))
