"""Parity: the same spec in both frameworks, and how far their loss curves lie apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hvdtrain.core.errors import SpecError
from hvdtrain.core.families import custom, family_of
from hvdtrain.core.run.output_dir import INITIAL_DIR
from hvdtrain.core.run.report import CurveDifference, compare_runs
from hvdtrain.core.spec.job_spec import load_spec
from hvdtrain.launch.command import Framework, run
from hvdtrain.launch.commands import Launcher

# In float64 rounding is all that differs; in float32 it grows update by update, hence the shorter look.
TOLERANCES: dict[str, tuple[float, int | None]] = {"float64": (1e-9, None), "float32": (1e-3, 50)}


def run_both(
    spec: str,
    np: int,
    overrides: Sequence[str],
    output_dir: Path,
    launcher: Launcher = Launcher.AUTO,
) -> dict[str, Path]:
    """Train a spec in PyTorch and then in TensorFlow, from the same initial values.

    Args:
        spec: a file or a packaged spec's name.
        np: ranks.
        overrides: `field.path=value` texts.
        output_dir: each framework writes into a folder of its own in it, in place of an earlier run.
        launcher: what starts the ranks.

    Returns:
        The output directory of each framework.

    Raises:
        typer.Exit: when one of them failed.
    """
    outputs = {framework.value: output_dir / framework.value for framework in Framework}
    model, first = load_spec(spec, overrides).model, outputs[Framework.TORCH.value].absolute()
    for framework in Framework:
        settings = list(overrides)
        if isinstance(model, custom.ModelSpec) and framework is not Framework.TORCH:
            settings.append(f"model.init_from={json.dumps(str(first / INITIAL_DIR))}")
        run(
            spec,
            framework=framework,
            np=np,
            set_=settings,
            output_dir=outputs[framework.value],
            launcher=launcher,
            overwrite=True,
        )
    return outputs


def measure_parity(
    spec: str,
    np: int,
    dtype: Literal["float64", "float32"],
    updates: int,
    overrides: Sequence[str],
    output_dir: Path,
) -> tuple[CurveDifference, float]:
    """Train a spec in both frameworks without dropout and compare every update's loss.

    Args:
        spec: a file or a packaged spec's name.
        np: ranks.
        dtype: of weights and computation.
        updates: how many.
        overrides: further `field.path=value` texts.
        output_dir: where both runs are kept.

    Returns:
        The difference, and the tolerance it must keep.

    Raises:
        SpecError: a model of the user's is not given in both frameworks with the names that match.
    """
    model = load_spec(spec, overrides).model
    if isinstance(model, custom.ModelSpec):
        _check_pair(model)
    family = family_of(model)
    forced = [
        f"model.dtype={dtype}",
        f"max_steps={updates}",
        "num_train_epochs=null",
        *(f"model.{rate}=0.0" for rate in family.DROPOUT),
        "logging.logging_steps=1",
        "logging.tensorboard=false",
    ]
    outputs = run_both(spec, np, [*overrides, *forced], output_dir)
    tolerance, compared = TOLERANCES[dtype]
    return compare_runs(outputs["torch"], outputs["tensorflow"], compared), tolerance


def _check_pair(model: custom.ModelSpec) -> None:
    missing = [name for name in ("torch", "tensorflow", "names") if getattr(model, name) is None]
    if missing:
        raise SpecError(
            f"model: parity needs both frameworks, and this spec has no {' and no '.join(missing)}: "
            "give model.torch, model.tensorflow, and in model.names the Keras layer of each PyTorch module"
        )
