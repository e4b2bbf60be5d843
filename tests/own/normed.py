"""A plain loop with its own batch norm: each rank's micro-batches by themselves, statistics for each rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch.nn import functional

from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from tests.own import data
from tests.own.jobs import MOMENTUM, RATE, batches, micro_batches

_EPSILON = 1e-3
_MEAN, _VARIANCE = "norm.running_mean", "norm.running_var"


@dataclass
class Normed:
    """The model `Normed` on some ranks.

    Attributes:
        weights: by name.
        statistics: each rank's running mean and variance.
        biased: whether the running variance is that of the rows (Keras), or of what they are drawn from.
        losses: of each update.
    """

    weights: dict[str, torch.Tensor]
    statistics: list[dict[str, np.ndarray]]
    biased: bool
    losses: list[float] = field(default_factory=list)
    _samples: list[int] = field(default_factory=list)

    @classmethod
    def start(cls, folder: Path, size: int, biased: bool) -> Normed:
        """The values of a folder on so many ranks."""
        arrays = load_file(folder / WEIGHTS_FILE)
        statistics = [{name: arrays[name].copy() for name in (_MEAN, _VARIANCE)} for _ in range(size)]
        weights = {n: torch.from_numpy(a) for n, a in arrays.items() if not n.startswith("norm.running")}
        for name, weight in weights.items():
            weight.requires_grad_(not name.startswith("frozen"))
        return cls(weights, statistics, biased, _samples=[0] * size)

    def train(self, updates: int, average_every: int) -> None:
        """Take updates of SGD; average the statistics over ranks, by the samples of each, now and then."""
        arrays, _ = data.points()
        velocities = {n: torch.zeros_like(w) for n, w in self.weights.items() if w.requires_grad}
        for number, indices in zip(range(1, updates + 1), batches(data.TRAIN), strict=False):
            gradients = {name: torch.zeros_like(v) for name, v in velocities.items()}
            total = 0.0
            for rank, share in enumerate(micro_batches(indices, len(self.statistics))):
                for rows in filter(len, share):
                    loss = self._loss(arrays["x"][rows], arrays["labels"][rows], rank)
                    found = torch.autograd.grad(loss, [self.weights[name] for name in gradients])
                    for name, part in zip(gradients, found, strict=True):
                        gradients[name] += part
                    total += float(loss.detach())
                    self._samples[rank] += len(rows)
            for name, gradient in gradients.items():
                velocities[name] = MOMENTUM * velocities[name] + gradient / len(indices)
                with torch.no_grad():
                    self.weights[name] -= RATE * velocities[name]
            self.losses.append(total / len(indices))
            if number % average_every == 0 or number == updates:
                self._average()

    def evaluate(self) -> float:
        """The mean loss of the evaluation set, by the running statistics, in NumPy."""
        _, arrays = data.points()
        weights = {n: w.detach().numpy() for n, w in self.weights.items()} | self.statistics[0]
        x = arrays["x"]
        for name in ("frozen", "first"):
            x = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        x = (x - weights[_MEAN]) / np.sqrt(weights[_VARIANCE] + _EPSILON)
        x = np.maximum(x * weights["norm.weight"] + weights["norm.bias"], 0.0)
        logits = x @ weights["head.weight"].T + weights["head.bias"]
        picked = logits[np.arange(len(logits)), arrays["labels"]]
        return float(np.mean(np.log(np.exp(logits).sum(1)) - picked))

    def _average(self) -> None:
        for name in (_MEAN, _VARIANCE):
            mean = np.average([each[name] for each in self.statistics], axis=0, weights=self._samples)
            for each in self.statistics:
                each[name] = mean
        self._samples = [0] * len(self.statistics)

    def _loss(self, x: np.ndarray, labels: np.ndarray, rank: int) -> torch.Tensor:
        weights, found = self.weights, torch.from_numpy(x)
        for name in ("frozen", "first"):
            found = found @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        mean = found.mean(0)
        squares = (found - mean).square()
        self._move(rank, mean.detach().numpy(), squares.detach().numpy())
        found = (found - mean) / (squares.mean(0) + _EPSILON).sqrt()
        found = torch.relu(found * weights["norm.weight"] + weights["norm.bias"])
        logits = found @ weights["head.weight"].T + weights["head.bias"]
        return functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")

    def _move(self, rank: int, mean: np.ndarray, squares: np.ndarray) -> None:
        variance = squares.sum(0) / (len(squares) - (not self.biased))
        for name, value in ((_MEAN, mean), (_VARIANCE, variance)):
            self.statistics[rank][name] = 0.9 * self.statistics[rank][name] + 0.1 * value
