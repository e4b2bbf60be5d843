"""In what the spec of a run that goes on may differ from what its checkpoint was trained with."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hvdtrain.core.checkpoints.manifest import SPEC_FILE, Manifest
from hvdtrain.core.checkpoints.saved_models import CONFIG_FILE
from hvdtrain.core.errors import CheckpointError, SpecError
from hvdtrain.core.run.output_dir import PLAN_FILE
from hvdtrain.core.run.run import Run
from hvdtrain.core.spec.sections import BatchSpec
from hvdtrain.core.update.accumulation import Accumulation, resolve_accumulation

# Sections and fields that leave samples and updates as they are, but for rounding; or that are compared in
# another way: data by its content, `batch` by the global batch, `model` by `config.json`.
_HARMLESS = {
    "batch",
    "checkpointing",
    "communication",
    "data.cache_dir",
    "data.collate_fn",
    "data.corpus",
    "data.dataloader_num_workers",
    "data.dataset",
    "data.eval_dataset",
    "data.files",
    "data.prefetch",
    "data.tokenizer_file",
    "data.validation_files",
    "evaluation",
    "gradient_checkpointing",
    "logging",
    "max_skipped_updates",
    "model",
    "num_threads",
    "zero_stage",
}
# How a model's code is found, and what only the libraries that open a saved model ask for.
_OF_OTHERS = {"architectures", "find_unused_parameters", "names", "tensorflow", "torch"}
_LENGTHS = ("max_steps", "num_train_epochs")
# Their learning rates do not depend on the number of updates.
_ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")


def check_changes(run: Run, checkpoint: Path, manifest: Manifest | None, allowed: Collection[str]) -> None:
    """Refuse to go on with another spec where that would change what is computed.

    The model is compared with the checkpoint's `config.json`, the rest with its `spec.json`, and the global
    batch with what that makes on the ranks that saved. In format 1 the spec lies beside the checkpoint, as
    the plan does, which then has the global batch, where it is still in its run's output directory.

    Args:
        run: on rank 0.
        checkpoint: a `checkpoint-N`.
        manifest: its own; None in format 1.
        allowed: fields that may differ.

    Raises:
        CheckpointError: naming each field that differs, and both values.
    """
    found = _model_changes(run, checkpoint) | _spec_changes(run, checkpoint, manifest)
    lines = [
        f"\n  {field} was {json.dumps(was)} and is now {json.dumps(now)}"
        for field, (was, now) in found.items()
        if field not in allowed
    ]
    if lines:
        raise CheckpointError(
            f"--resume {checkpoint}: its run had another spec:{''.join(lines)}\nGive what its run had; or, "
            "to go on with the new values, add --allow-change and the field's name for each of them"
        )


def _model_changes(run: Run, checkpoint: Path) -> dict[str, tuple[Any, Any]]:
    current = getattr(run.family, "current_config", dict)
    saved = current(_read(checkpoint / CONFIG_FILE))
    config = {**run.family.hf_config(run.spec.model), **run.dataset.config}
    # As JSON has it: without tuples, and with texts as keys.
    now = current(json.loads(json.dumps(config)))
    names = sorted(saved.keys() | now.keys())
    return {
        f"model.{name}": (saved.get(name), now.get(name))
        for name in names
        if name not in _OF_OTHERS and not _same(saved.get(name), now.get(name))
    }


def _spec_changes(run: Run, checkpoint: Path, manifest: Manifest | None) -> dict[str, tuple[Any, Any]]:
    specs = (folder / SPEC_FILE for folder in (checkpoint, checkpoint.parent))
    path = next((path for path in specs if path.is_file()), None)
    if path is None:
        return {}
    fields, before = _fields(json.loads(run.spec.model_dump_json())), _fields(_read(path))
    # A field that only one of them has is of another version, or of a section of another type.
    found = {
        name: (before[name], fields[name])
        for name in fields
        if name in before and not _is_harmless(name, run) and not _same(before[name], fields[name])
    }
    accumulation = _of_plan(checkpoint.parent / PLAN_FILE) if manifest is None else _of_spec(path, manifest)
    if accumulation is not None:
        batches = _global_batch(accumulation), _global_batch(run.plan.accumulation)
        found |= {"batch.global_batch_size": batches} if batches[0] != batches[1] else {}
    return found


def _of_spec(path: Path, manifest: Manifest) -> Accumulation:
    """What the updates of a checkpoint's run were made of when it was saved."""
    try:
        batch = BatchSpec.model_validate_json(json.dumps(_read(path)["batch"]))
        return resolve_accumulation(batch, manifest.ranks)
    except (KeyError, ValueError, SpecError):
        raise _strange(path) from None


def _of_plan(path: Path) -> Accumulation | None:
    """The same from the plan of the last run in its directory; None where that does not say so."""
    accumulation = _read(path).get("accumulation") if path.is_file() else None
    return accumulation and Accumulation(**accumulation)


def _global_batch(accumulation: Accumulation) -> Any:
    """What an update takes on all ranks together, however they share it."""
    if accumulation.target_tokens is not None:
        return f"{accumulation.target_tokens} tokens"
    rows = accumulation.size * accumulation.per_device
    (_, first), *later = accumulation.stages
    return [[start, rows * steps] for start, steps in accumulation.stages] if later else rows * first


def _fields(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's values by field, as in `optimizer.learning_rate`; what is no section stays whole."""
    found: dict[str, Any] = {}
    for name, value in spec.items():
        # One policy or a list of them, of any types.
        if isinstance(value, dict) and name != "compression":
            found |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            found[name] = value
    return found


def _is_harmless(field: str, run: Run) -> bool:
    schedule = run.spec.schedule
    if field in _LENGTHS:
        return schedule.type in _ENDLESS and (schedule.warmup_steps is not None or not schedule.warmup_ratio)
    return not _HARMLESS.isdisjoint((field, field.partition(".")[0]))


def _same(was: Any, now: Any) -> bool:
    """Whether two values mean the same; a user's code may lie elsewhere in the other framework."""
    return was == now or (_is_code(was) and _is_code(now))


def _is_code(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(each, str) and ":" in each for each in values)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return dict(found)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise _strange(path) from None


def _strange(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: is not what a job has written; take it from a copy")
