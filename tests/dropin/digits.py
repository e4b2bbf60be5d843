"""The examples' network and training in plain NumPy: what every framework and number of ranks must follow."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from hvdtrain.core.data import epoch_order


def reference_curve(global_batch: int, training: int = 1500, epochs: int = 3) -> list[float]:
    """The mean loss of every update, in float64."""
    x, y = load_digits(return_X_y=True)
    draw = np.random.default_rng(0)
    weights = [draw.normal(0.0, 0.1, (64, 32)), np.zeros(32), draw.normal(0.0, 0.1, (32, 10)), np.zeros(10)]
    moments = [np.zeros_like(w) for w in weights]
    curve = []
    for epoch in range(epochs):
        order = epoch_order(0, epoch, training)
        for start in range(0, training, global_batch):
            rows = order[start : start + global_batch]
            loss, gradients = _gradients(weights, x[rows] / 16, y[rows])
            curve.append(loss)
            for weight, moment, gradient in zip(weights, moments, gradients, strict=True):
                moment[...] = 0.9 * moment + gradient
                weight[...] = weight - 0.1 * moment
    return curve


def _gradients(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> tuple[float, list[np.ndarray]]:
    w1, b1, w2, b2 = weights
    hidden = np.tanh(x @ w1 + b1)
    logits = hidden @ w2 + b2
    logits = logits - logits.max(1, keepdims=True)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    p[np.arange(len(y)), y] -= 1
    d_logits = p / len(y)
    d_hidden = (d_logits @ w2.T) * (1 - hidden**2)
    return float(loss), [x.T @ d_hidden, d_hidden.sum(0), hidden.T @ d_logits, d_logits.sum(0)]
