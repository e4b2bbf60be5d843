"""Programs in the manner of Horovod's documentation, run by `python -m hvdtrain.horovod` as they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.runs import ROOT, launch

HERE = Path(__file__).parent
PROGRAMS = HERE / "horovod_programs"
UNCHANGED = PROGRAMS / "unchanged"
KERAS = (
    "keras_mnist.py",
    "keras_mnist_advanced.py",
    "keras_imagenet.py --epochs 2",
    # Goes on where the one before has ended, from what rank 0 alone loads.
    "keras_imagenet.py --epochs 4 --fp16-allreduce",
    "tensorflow2_mnist.py",
    "tensorflow2_keras_mnist.py",
)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Programs write into the working directory."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def run(program: list[str], wire: str = "mpirun") -> tuple[dict[str, list[str]], str]:
    """Each result's values, rank by rank, and all that was printed."""
    done = launch(2, ["-m", "hvdtrain.horovod", *program], wire, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:]
    # Launchers tag whatever piece of a line they happen to read.
    printed = re.sub(r"\[1,\d\]<\w+>:", "", done.stdout)
    found: dict[str, dict[str, str]] = {}
    for rank, name, value in re.findall(r"RESULT (\d) (\w+) ([-\d.e]+)", printed):
        found.setdefault(name, {})[rank] = value
    assert all(each.keys() == {"0", "1"} for each in found.values()), printed[-5000:]
    return {name: [each["0"], each["1"]] for name, each in found.items()}, printed


def learnt(found: dict[str, list[str]], name: str, by: float) -> None:
    """The loss has fallen to a share of what it was, and the ranks' weights are the same to the last bit."""
    assert float(found[f"{name}_last"][0]) < by * float(found[f"{name}_first"][0])
    first, second = found[f"{name}_weights"]
    assert first == second


def test_keras_and_tensorflow_programs(elsewhere: Path) -> None:
    found, printed = run([str(HERE / "run_all.py"), *(f"{UNCHANGED}/{line}" for line in KERAS)])
    for name, by in (("mnist", 0.9), ("advanced", 0.6), ("loop", 0.9), ("tfkeras", 0.6)):
        learnt(found, name, by)
    for name in (
        "advanced_accuracy",
        "loop_state",
        "imagenet2_weights",
        "imagenet4_weights",
        "imagenet4_score",
    ):
        assert found[name][0] == found[name][1], name
    # A resumed run takes the epochs that are left, with the optimizer as it was.
    assert [*map(float, found["imagenet2_steps"])] == [20, 20]
    assert [*map(float, found["imagenet4_steps"])] == [40, 40]
    assert [*map(float, found["imagenet4_epochs"])] == [2, 2]
    assert float(found["imagenet4_loss"][0]) < float(found["imagenet2_loss"][0])
    # What K.set_value sets; a warmed-up rate; weights that are as they were saved.
    assert float(found["advanced_rate"][0]) == pytest.approx(0.1)
    assert float(found["tfkeras_rate"][0]) == pytest.approx(0.004)
    assert float(found["advanced_restored"][0]) == float(found["tfkeras_loaded"][0]) == 0.0
    # Each habit is named once, on one rank.
    for habit in (
        "compile(experimental_run_tf_function=...)",
        "fit(workers=..., use_multiprocessing=..., max_queue_size=...)",
        "fit_generator(...)",
        "evaluate_generator(...)",
        "optimizer(lr=...)",
        "optimizer.lr",
        "optimizer.variables()",
        "keras.optimizers.legacy",
        "keras.backend.get_value(x)",
        "keras.backend.set_value(x, value)",
        "keras.preprocessing.image.ImageDataGenerator",
        "checkpoint.h5",
        "save_weights('weights.h5')",
    ):
        assert printed.count(f"hvdtrain: {habit} is from Keras 2: ") == 1, habit


DECAY = """import keras, numpy as np
import horovod.keras as hvd
from keras import backend as K
hvd.init()
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(lr=0.1, decay=1e-3)), "mse")
def fit():
    model.fit(np.ones((4, 2)), np.ones((4, 1)), callbacks=[hvd.callbacks.LearningRateWarmupCallback(0.1)])
def set_lr():
    model.optimizer.lr = 0.1
for act in (lambda: K.set_value(model.optimizer.lr, 0.1), set_lr, fit):
    try:
        act()
    except Exception as error:
        print(f"told: {type(error).__name__}: {error}")
"""


def test_a_rate_that_decays_cannot_be_set(tmp_path: Path) -> None:
    (tmp_path / "decay.py").write_text(DECAY)
    done = subprocess.run(
        [sys.executable, "-m", "hvdtrain.horovod", "decay.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("told: ")]
    assert len(told) == 3, done.stdout + done.stderr
    assert all(line.startswith("told: SpecError: ") and "decay=" in line for line in told), told


def test_a_pytorch_program_with_a_fork_server(elsewhere: Path) -> None:
    found, _ = run([str(UNCHANGED / "torch_mnist.py"), "--gradient-predivide-factor", "2.0"], wire="gloo")
    learnt(found, "torch00", 0.5)


@pytest.mark.slow
def test_pytorch_programs_that_go_on_from_a_checkpoint(elsewhere: Path) -> None:
    lines = [f"{UNCHANGED}/torch_mnist.py{each}" for each in ("", "", " --use-adasum")]
    lines += [str(PROGRAMS / f"torch_{name}.py") for name in ("epochs", "accumulation", "mixed")]
    found, _ = run([str(HERE / "run_all.py"), *lines])
    for name in ("torch00", "torch01", "torch11"):
        learnt(found, name, 0.6)
    for name in ("loss", "accuracy", "weights"):
        assert found[name][0] == found[name][1], name


@pytest.mark.slow
def test_keras_programs_that_were_written_for_keras_3(elsewhere: Path) -> None:
    names = ("keras_fit", "keras_schedules", "tensorflow_loop")
    found, printed = run([str(HERE / "run_all.py"), *(str(PROGRAMS / f"{name}.py") for name in names)])
    for name in ("weights", "last", "rate", "score", "tapemean"):
        assert found[name][0] == found[name][1], name
    assert "is from Keras 2" not in printed
