"""Small datasets, equal wherever they are made; their sizes divide by no number of ranks."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]
TRAIN, EVALUATION = 53, 22


def pictures() -> tuple[Arrays, Arrays]:
    """Pictures with one bright row, whose number is the label."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 8, TRAIN + EVALUATION)
    image = random.normal(0.0, 0.3, (len(labels), 8, 8, 1))
    image[np.arange(len(labels)), labels] += 1.0
    return _split({"image": image, "labels": labels})


def points() -> tuple[Arrays, Arrays]:
    """Points, a class of each, and how much it counts, which differs a lot."""
    random = np.random.default_rng(1)
    x = random.normal(size=(TRAIN + EVALUATION, 6))
    labels = np.argmax(x[:, :3] + 0.5 * x[:, 3:], 1)
    return _split({"x": x, "labels": labels, "count": random.integers(0, 9, len(x))})


def classes() -> tuple[Arrays, Arrays]:
    """Points and their classes alone."""
    train, evaluation = points()
    return tuple({"x": a["x"], "labels": a["labels"]} for a in (train, evaluation))  # type: ignore[return-value]


def classes_alone() -> Arrays:
    """Them, and nothing to evaluate on."""
    return classes()[0]


def numbers() -> tuple[Arrays, Arrays]:
    """Points and a number for each."""
    train, evaluation = points()
    return tuple({"x": a["x"], "labels": np.sin(a["x"].sum(1))} for a in (train, evaluation))  # type: ignore[return-value]


def sides() -> tuple[Arrays, Arrays]:
    """Points and whether their elements add up to more than 0."""
    train, evaluation = points()
    return tuple({"x": a["x"], "labels": a["x"].sum(1) > 0} for a in (train, evaluation))  # type: ignore[return-value]


def sequences() -> tuple[Arrays, Arrays]:
    """Tokens and their tags, of which a share that differs from sequence to sequence is left out."""
    random = np.random.default_rng(2)
    ids = random.integers(0, 11, (TRAIN + EVALUATION, 7))
    left_out = random.random(ids.shape) < random.random((len(ids), 1))
    left_out[5] = True
    return _split({"ids": ids, "labels": np.where(left_out, -100, ids % 4)})


def _split(arrays: Arrays) -> tuple[Arrays, Arrays]:
    return {n: a[:TRAIN] for n, a in arrays.items()}, {n: a[TRAIN:] for n, a in arrays.items()}
