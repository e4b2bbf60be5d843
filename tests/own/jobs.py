"""The jobs that the tests of users' models train, and a plain loop of PyTorch: what should come of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from hvdtrain.core.data import global_batches
from hvdtrain.core.data.order import rank_share
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.update.accumulation import Accumulation
from tests.jobs.runs import train_all
from tests.own import data

GLOBAL, PER_DEVICE, SEED, RATE, MOMENTUM = 16, 4, 3, 0.1, 0.9
# The layer of the Keras model for each module; the models call them alike.
MODULES = {
    "CNN": ("conv1", "conv2", "head"),
    "Scores": ("first", "second"),
    "Fixed": ("first", "second"),
    "Dropped": ("first", "second"),
    "Value": ("first", "second"),
    "Tags": ("embedding", "head"),
    "Normed": ("frozen", "first", "norm", "head"),
}
BASE: dict[str, Any] = {
    "optimizer": {"type": "sgd", "learning_rate": RATE, "momentum": MOMENTUM, "weight_decay": 0.0},
    "schedule": {"type": "constant"},
    # Two micro-batches on each of two ranks, four on one.
    "batch": {"global_batch_size": GLOBAL, "per_device_train_batch_size": PER_DEVICE},
    "max_grad_norm": None,
    "num_threads": 1,
    "seed": SEED,
    "logging": {"tensorboard": False, "progress_bar": False},
}


def job(model: str, dataset: str, loss: str, updates: int, *overrides: str, **task: Any) -> list[str]:
    """Overrides of a scenario.

    Args:
        model: its name in `torch_models` and `keras_models`.
        dataset: a function of `data`.
        loss: a named one, or the name of a function in `torch_losses` and `keras_losses`.
        updates: how many.
        overrides: more of them.
        task: fields of its section; names of functions as in `loss`.
    """
    sections = {
        "model": {
            "torch": f"tests.own.torch_models:{model}",
            "tensorflow": f"tests.own.keras_models:{model}",
            "names": {name: name for name in MODULES[model]},
            "dtype": "float64",
        },
        "data": {"dataset": f"tests.own.data:{dataset}"},
        "task": {"loss": loss, **task},
    }
    found = [f"{name}={json.dumps(section)}" for name, section in sections.items()]
    return [*found, f"max_steps={updates}", *overrides]


def train(
    directory: Path,
    framework: str,
    size: int,
    scenarios: dict[str, list[str]],
    resume: dict[str, Path] | None = None,
    wire: str = "mpirun",
) -> dict[str, Path]:
    """Train scenarios of `job` in one launch, from the spec that they share; returns their directories."""
    directory.mkdir(parents=True)
    spec = base_spec(directory)
    functions = f"tests.own.{'torch' if framework == 'torch' else 'keras'}_losses:"
    # The functions of either framework have the same names.
    given = {name: [each.replace("own:", functions) for each in sets] for name, sets in scenarios.items()}
    return train_all(directory, framework, size, given, resume, wire, str(spec))


def base_spec(directory: Path) -> Path:
    """Writes the spec that all scenarios share."""
    spec = directory / "base.yaml"
    spec.write_text(json.dumps(BASE))
    return spec


def losses(run: Path) -> np.ndarray:
    """The loss of each update, (updates,)."""
    return np.array([line["loss"] for line in read_metrics(run)[0]])


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The lines of each evaluation."""
    return read_metrics(run)[1]


def batches(samples: int) -> Iterator[np.ndarray]:
    """The samples of each update over all ranks."""
    whole = Accumulation(1, GLOBAL)
    return (each.indices for each in global_batches(SEED, np.ones(samples, np.int64), whole))


def micro_batches(indices: np.ndarray, size: int) -> list[list[np.ndarray]]:
    """The samples of each rank's micro-batches."""
    steps = GLOBAL // size // PER_DEVICE
    return [rank_share(indices, rank, size, steps, PER_DEVICE) for rank in range(size)]


def reference(
    run: Path,
    model: torch.nn.Module,
    dataset: Callable[[], tuple[data.Arrays, data.Arrays]],
    loss: Callable[[torch.Tensor, dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]],
    updates: int,
) -> np.ndarray:
    """The losses of a plain loop of PyTorch over global batches, from the values that a run started from.

    Args:
        run: the run, whose `initial` folder says them.
        model: of the names in it.
        dataset: whose training set is used.
        loss: of outputs and a batch, a sum and what it weighs.
        updates: how many.
    """
    model = model.double()
    model.load_state_dict(load_file(run / "initial" / "model.safetensors"))
    arrays = {name: torch.from_numpy(array) for name, array in dataset()[0].items()}
    (inputs, *_) = (name for name in arrays if name not in ("labels", "count"))
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    found: list[float] = []
    for indices, _ in zip(batches(data.TRAIN), range(updates), strict=False):
        batch = {name: array[torch.from_numpy(indices)] for name, array in arrays.items()}
        total, weight = loss(model(batch[inputs]), batch)
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
        found.append(float((total / weight).detach()))
    return np.array(found)
