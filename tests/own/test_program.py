"""A program that calls hvdtrain.train: alone and under every launcher, more than once, and what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.run.metrics import read_metrics
from tests.jobs.runs import FRAMEWORKS, ROOT, launch
from tests.own import data
from tests.own.jobs import evaluations, losses

PROGRAM = "tests.own.my_job"
SLOW = pytest.mark.slow


def alone(framework: str, out: Path) -> subprocess.CompletedProcess[str]:
    launched = ("HOROVOD_", "OMPI_", "PMI_", "SLURM_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(launched)}
    env |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, "-m", PROGRAM, framework, str(out), "8"]
    return subprocess.run(program, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """The output directory and what was printed by plain `python`, by framework."""
    found = {}
    for framework in FRAMEWORKS:
        out = tmp_path_factory.mktemp(framework)
        done = alone(framework, out)
        assert done.returncode == 0, done.stderr[-5000:]
        found[framework] = out, done.stdout
    return found


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_plain_python_trains_and_gets_results(single: dict[str, tuple[Path, str]], framework: str) -> None:
    out, printed = single[framework]
    (line,) = read_metrics(out / "first")[0][-1:]
    expected = f"updates 8, loss {line['loss']}, {evaluations(out / 'first')[-1]['eval_loss']}, "
    assert f"{expected}{out / 'first' / 'model'}\n" in printed
    assert losses(out / "first")[-1] < losses(out / "first")[0]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_errors_are_raised_in_plain_python(single: dict[str, tuple[Path, str]], framework: str) -> None:
    out, printed = single[framework]
    assert "told: task.loss: __main__:main.<locals>.<lambda> returned one number for 1 example(s)" in printed
    assert not (out / "wrong" / "model").exists()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_program_may_train_again_and_go_on(single: dict[str, tuple[Path, str]], framework: str) -> None:
    out, _ = single[framework]
    np.testing.assert_array_equal(losses(out / "second"), losses(out / "first"))
    np.testing.assert_array_equal(losses(out / "resumed"), losses(out / "first")[4:])
    np.testing.assert_array_equal(losses(out / "dropped again"), losses(out / "dropped")[4:])
    assert np.all(losses(out / "dropped") != losses(out / "first"))


@pytest.mark.parametrize(
    ("framework", "wire"),
    [
        ("torch", "gloo"),
        pytest.param("torch", "mpirun", marks=SLOW),
        pytest.param("tensorflow", "gloo", marks=SLOW),
        pytest.param("tensorflow", "mpirun", marks=SLOW),
    ],
)
def test_launchers_start_the_same_program(
    single: dict[str, tuple[Path, str]], framework: str, wire: str, tmp_path: Path
) -> None:
    done = launch(2, ["-m", PROGRAM, framework, str(tmp_path), "8"], wire)
    assert done.returncode == 0, done.stdout[-3000:]
    out, _ = single[framework]
    np.testing.assert_allclose(losses(tmp_path / "first"), losses(out / "first"), rtol=1e-12)
    ours, theirs = (evaluations(place / "first")[-1] for place in (out, tmp_path))
    assert theirs["eval_accuracy"] == ours["eval_accuracy"]


def test_the_torch_model_opens_outside(single: dict[str, tuple[Path, str]]) -> None:
    import torch
    from safetensors.torch import load_file

    out, _ = single["torch"]
    layers = torch.nn
    model = layers.Sequential(
        layers.Flatten(), layers.Linear(64, 8), layers.Dropout(0.0), layers.Tanh(), layers.Linear(8, 8)
    ).double()
    model.load_state_dict(load_file(out / "first" / "model" / "model.safetensors"))
    images = torch.from_numpy(data.pictures()[1]["image"])
    check_accuracy(out, model(images).argmax(1).numpy())


def test_the_keras_model_opens_outside(single: dict[str, tuple[Path, str]]) -> None:
    import keras
    from safetensors.numpy import load_file

    out, _ = single["tensorflow"]
    keras.utils.clear_session()
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(8),
            layers.Activation("tanh"),
            layers.Dense(8),
        ]
    )
    arrays = load_file(out / "first" / "model" / "model.safetensors")
    assert {variable.path for variable in model.variables} == arrays.keys()
    for variable in model.variables:
        variable.assign(arrays[variable.path])
    check_accuracy(out, np.asarray(model(data.pictures()[1]["image"])).argmax(1))


def check_accuracy(out: Path, found: np.ndarray) -> None:
    expected = np.mean(found == data.pictures()[1]["labels"])
    assert evaluations(out / "first")[-1]["eval_accuracy"] == pytest.approx(expected, abs=1e-12)
