"""Small problems for simulated ranks, each with data of its own on every rank, in NumPy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import ClassVar

import numpy as np

from hvdtrain.core.data.sources import python_docs
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.initializers import ZEROS, Normal
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.random import generator

# By weight name: shape (ranks, *weight.shape), or (1, *weight.shape) when all ranks have the same.
Arrays = dict[str, np.ndarray]


class Problem(ABC):
    """A loss over data that is spread over ranks.

    Attributes:
        name: on the command line and in results.
        title: what it is, in a line.
        examples: of one rank in one update.
        weights: what is trained.
        best: the lowest loss there is; None where nobody knows it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    examples: ClassVar[int]
    weights: ClassVar[tuple[Weight, ...]]
    best: float | None = None

    @abstractmethod
    def gradients(self, weights: Arrays, update: int) -> Arrays:
        """Each rank's gradient of the loss summed over its examples.

        Args:
            weights: where to take it.
            update: its number, counted from 1, chooses the examples.

        Returns:
            Arrays of shape (ranks, *weight.shape) and the weights' dtype.
        """

    @abstractmethod
    def loss(self, weights: Arrays) -> float:
        """The mean loss that is to fall; weights of one row."""

    def distance(self, weights: Arrays) -> float | None:
        """How far the weights are from the optimum, relative to its norm; None where nobody knows it."""
        del weights
        return None


class LeastSquares(Problem):
    """Linear maps fitted by ridge regression: convex, with an optimum that a formula gives.

    The ranks disagree: each has a mean of inputs and a true map of its own, around common ones. An update
    uses all examples, so that nothing but the policy is between a run and the optimum. Inputs have scales
    from 1 down to 0.2, so that directions differ in curvature.
    """

    name = "least-squares"
    title = "least squares: 64 inputs, 32 outputs, 4 examples a rank, ranks that disagree"
    examples = 4
    weights = (Weight("weight", (32, 64), False, ZEROS), Weight("bias", (32,), False, ZEROS))
    _ridge = 1e-3

    def __init__(self, ranks: int, seed: int, dtype: str) -> None:
        """Draw the data.

        Args:
            ranks: how many have a share of it.
            seed: of the data.
            dtype: of data and gradients.
        """
        outputs, inputs = self.weights[0].shape
        draw = generator(seed, "simulate least squares", ranks).normal
        x = draw(0.0, 1.0, (ranks, self.examples, inputs)) + draw(0.0, 0.5, (ranks, 1, inputs))
        x *= np.geomspace(1.0, 0.2, inputs)
        maps = draw(0.0, 0.05, (outputs, inputs)) + draw(0.0, 0.05, (ranks, outputs, inputs))
        y = x @ maps.swapaxes(1, 2) + draw(0.0, 0.05, (ranks, 1, outputs)) + 0.05
        self.optimum = self._solve(x, y)
        self._x, self._y = x.astype(dtype), y.astype(dtype)
        self.best = self.loss({name: array[None] for name, array in self.optimum.items()})

    def gradients(self, weights: Arrays, update: int) -> Arrays:
        """As `Problem.gradients`; the same examples at every update."""
        del update
        errors = self._errors(weights)
        pull = self.examples * self._ridge * weights["weight"]
        return {"weight": errors.swapaxes(1, 2) @ self._x + pull, "bias": errors.sum(axis=1)}

    def loss(self, weights: Arrays) -> float:
        """Half the squared error of an example, and half the ridge times the squared norm."""
        errors = self._errors(weights).astype(np.float64)
        ridge = self._ridge * np.square(weights["weight"], dtype=np.float64).sum()
        return float((np.square(errors).sum(axis=-1).mean() + ridge) / 2.0)

    def distance(self, weights: Arrays) -> float | None:
        """Relative to the norm of the optimum."""
        off = sum(np.square(weights[name][0] - best).sum() for name, best in self.optimum.items())
        return float(np.sqrt(off / sum(np.square(best).sum() for best in self.optimum.values())))

    def _errors(self, weights: Arrays) -> np.ndarray:
        return self._x @ weights["weight"].swapaxes(1, 2) + weights["bias"][:, None] - self._y

    def _solve(self, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        # The normal equations, with the bias as the weight of one more input, which is always 1.
        inputs = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2).reshape(-1, x.shape[2] + 1)
        count = len(inputs)
        ridge = np.diag([self._ridge] * x.shape[2] + [0.0])
        found = np.linalg.solve(inputs.T @ inputs / count + ridge, inputs.T @ y.reshape(count, -1) / count)
        return {"weight": found[:-1].T, "bias": found[-1]}


class LanguageModel(Problem):
    """The next character of CPython's documentation from the three before (after Bengio et al. 2003).

    Embeddings of 8, a hidden layer of 32 (tanh), a softmax over 64 characters; gradients by hand. Each rank
    reads a stretch of its own, so that ranks read about different things; the last twentieth is held out.
    """

    name = "language-model"
    title = "language model: two layers on CPython's documentation, 8 characters a rank and update"
    examples = 8
    weights = (
        Weight("embeddings.weight", (64, 8), True, Normal(0.2)),
        Weight("hidden.weight", (32, 24), True, Normal(0.2)),
        Weight("hidden.bias", (32,), False, ZEROS),
        Weight("output.weight", (64, 32), True, Normal(0.2)),
        Weight("output.bias", (64,), False, ZEROS),
    )
    _context = 3

    def __init__(self, ranks: int, seed: int, dtype: str) -> None:
        """Read the text.

        Args:
            ranks: how many read it.
            seed: of the choice of examples.
            dtype: without effect: gradients have the weights'.

        Raises:
            SpecError: when there is too little text for so many ranks.
        """
        del dtype
        text = "\n".join(python_docs()).lower()
        common = Counter(text).most_common(self.weights[0].shape[0] - 1)
        codes = {character: code for code, (character, _) in enumerate(common, start=1)}
        encoded = np.array([codes.get(character, 0) for character in text])
        training, held_out = np.split(encoded, [len(encoded) * 19 // 20])
        stretch = len(training) // ranks
        if stretch <= self._context:
            most = len(training) // (self._context + 1)
            raise SpecError(f"--ranks: the text is long enough for {most} ranks, found {ranks}")
        self._texts = training[: ranks * stretch].reshape(ranks, stretch)
        self._seed = seed
        places = generator(seed, "simulate held out").integers(0, len(held_out) - self._context, (1, 2048))
        self._held_out = self._examples(held_out[None], places)

    def gradients(self, weights: Arrays, update: int) -> Arrays:
        """As `Problem.gradients`; every update draws its own examples."""
        ranks, stretch = self._texts.shape
        draw = generator(self._seed, "simulate batch", update).integers
        places = draw(0, stretch - self._context, (ranks, self.examples))
        contexts, targets = self._examples(self._texts, places)
        x, hidden, logs = self._forward(weights, contexts)
        d_logits = np.exp(logs)
        np.put_along_axis(d_logits, targets, np.take_along_axis(d_logits, targets, axis=2) - 1, axis=2)
        d_hidden = (d_logits @ weights["output.weight"]) * (1 - hidden**2)
        d_x = (d_hidden @ weights["hidden.weight"]).reshape(*contexts.shape, -1)
        d_embeddings = np.zeros((ranks, *self.weights[0].shape), d_x.dtype)
        np.add.at(d_embeddings, (np.arange(ranks)[:, None, None], contexts), d_x)
        return {
            "embeddings.weight": d_embeddings,
            "hidden.weight": d_hidden.swapaxes(1, 2) @ x,
            "hidden.bias": d_hidden.sum(axis=1),
            "output.weight": d_logits.swapaxes(1, 2) @ hidden,
            "output.bias": d_logits.sum(axis=1),
        }

    def loss(self, weights: Arrays) -> float:
        """Nats a character of the held-out text."""
        contexts, targets = self._held_out
        logs = self._forward(weights, contexts)[2]
        return float(-np.take_along_axis(logs, targets, axis=2).mean(dtype=np.float64))

    def _examples(self, texts: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Contexts (ranks, examples, 3) and the characters behind them (ranks, examples, 1)."""
        every = places[:, :, None] + np.arange(self._context + 1)
        found = texts[np.arange(len(texts))[:, None, None], every]
        return found[:, :, :-1], found[:, :, -1:]

    def _forward(self, weights: Arrays, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, hidden units and log-probabilities: (ranks, examples, ...)."""
        embeddings = weights["embeddings.weight"]
        own = np.arange(len(embeddings))[:, None, None]
        x = embeddings[own, contexts].reshape(*contexts.shape[:2], -1)
        hidden = np.tanh(x @ weights["hidden.weight"].swapaxes(1, 2) + weights["hidden.bias"][:, None])
        logits = hidden @ weights["output.weight"].swapaxes(1, 2) + weights["output.bias"][:, None]
        logits = logits - logits.max(axis=2, keepdims=True)
        return x, hidden, logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))


PROBLEMS: dict[str, type[LeastSquares] | type[LanguageModel]] = {
    problem.name: problem for problem in (LeastSquares, LanguageModel)
}
