"""Batch norm in both frameworks against NumPy, written out, and against PyTorch's own layer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from hvdtrain.core.families.batch_norm import EPSILON, MOMENTUM, recomputing
from hvdtrain.tensorflow import batch_norm as in_tensorflow
from hvdtrain.torch import batch_norm as in_torch

CHANNELS = 5


@dataclass
class Case:
    """What goes in; x and upstream are (rows, channels, height, width)."""

    x: np.ndarray
    upstream: np.ndarray
    rows: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


@dataclass
class Found:
    """What comes out: the output, gradients of sum(output * upstream), running statistics."""

    output: np.ndarray
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def case(rows: int = 6, size: tuple[int, int] = (3, 4), real: int | None = None, shift: float = 2.0) -> Case:
    """Values far from those that a norm starts with; rows beyond the real ones hold anything."""
    random = np.random.default_rng(rows)
    shape = rows, CHANNELS, *size
    weights = np.arange(rows) < (rows if real is None else real)
    x = random.normal(shift, 3.0, shape)
    x[~weights] = 1e3 * random.normal(size=(int((~weights).sum()), *shape[1:]))
    # The loss of a row beyond the data weighs nothing.
    upstream = random.normal(size=shape) * weights[:, None, None, None]
    others = random.normal(1.0, 0.3, (4, CHANNELS))
    return Case(x, upstream, weights.astype(np.float64), *others)


def by_numpy(given: Case) -> Found:
    real = given.rows > 0
    x, upstream = given.x[real], given.upstream[real]
    axes, n = (0, 2, 3), max(len(x) * x.shape[2] * x.shape[3], 1)
    mean = x.sum(axes) / n
    variance = ((x - mean[:, None, None]) ** 2).sum(axes) / n
    inverse = 1 / np.sqrt(variance + EPSILON)[:, None, None]
    scale = given.weight[:, None, None] * inverse
    output = (given.x - mean[:, None, None]) * scale + given.bias[:, None, None]
    output[~real] = given.bias[:, None, None]
    normal = (x - mean[:, None, None]) * inverse
    sums, products = upstream.sum(axes), (upstream * normal).sum(axes)
    gradient = np.zeros_like(given.x)
    gradient[real] = scale * (upstream - sums[:, None, None] / n - normal * products[:, None, None] / n)
    running = given.mean, given.variance
    if n > 1:
        new = mean, variance * n / (n - 1)
        running = tuple((1 - MOMENTUM) * a + MOMENTUM * b for a, b in zip(running, new, strict=True))
    return Found(output, gradient, products, sums, *running)


def by_torch(given: Case, dtype: torch.dtype = torch.float64, x_dtype: torch.dtype | None = None) -> Found:
    x, weight, bias = (
        torch.from_numpy(a).to(d).requires_grad_()
        for a, d in ((given.x, x_dtype or dtype), (given.weight, dtype), (given.bias, dtype))
    )
    mean, variance = (torch.from_numpy(a).to(dtype, copy=True) for a in (given.mean, given.variance))
    output, moments = in_torch.batch_norm(x, weight, bias, torch.from_numpy(given.rows), None)
    in_torch.keep(mean, variance, moments)
    assert output.dtype == x.dtype
    output.backward(torch.from_numpy(given.upstream).to(output))
    found = output.detach(), x.grad, weight.grad, bias.grad, mean, variance
    return Found(*(t.double().numpy() for t in found))


def by_tensorflow(given: Case, dtype: Any = tf.float64, x_dtype: Any = None, compiled: bool = True) -> Found:
    mean, variance = (tf.Variable(tf.cast(a, dtype)) for a in (given.mean, given.variance))

    def run(x: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor, rows: tf.Tensor, upstream: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, weight, bias])
            output, moments = in_tensorflow.batch_norm(x, weight, bias, rows, None)
        in_tensorflow.keep(mean, variance, moments)
        return output, *tape.gradient(output, [x, weight, bias], tf.cast(upstream, output.dtype))

    call = tf.function(run, autograph=False) if compiled else run
    x, upstream = (given.x.transpose(0, 2, 3, 1), given.upstream.transpose(0, 2, 3, 1))
    weight, bias = (tf.cast(a, dtype) for a in (given.weight, given.bias))
    output, for_x, *others = call(
        tf.cast(x, x_dtype or dtype), weight, bias, tf.constant(given.rows), tf.constant(upstream)
    )
    assert output.dtype == (x_dtype or dtype)
    images = [tf.cast(t, tf.float64).numpy().transpose(0, 3, 1, 2) for t in (output, for_x)]
    return Found(*images, *(tf.cast(t, tf.float64).numpy() for t in (*others, mean, variance)))


def eagerly(given: Case) -> Found:
    return by_tensorflow(given, compiled=False)


EACH = {"torch": by_torch, "tensorflow": by_tensorflow, "eager": eagerly}
each = pytest.mark.parametrize("framework", EACH)


def check(found: Found, expected: Found, tolerance: float) -> None:
    for field in fields(Found):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        scale = max(float(np.abs(theirs).max()), 1e-3)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale, err_msg=field.name)


@each
@pytest.mark.parametrize("real", [6, 5, 1, 0])
def test_it_is_that_of_numpy(framework: str, real: int) -> None:
    given = case(real=real)
    found, expected = EACH[framework](given), by_numpy(given)
    check(found, expected, 1e-13)
    np.testing.assert_array_equal(found.x[real:], 0.0)
    if not real:
        np.testing.assert_array_equal(found.mean, given.mean)
        np.testing.assert_array_equal(found.variance, given.variance)


@each
def test_it_is_that_of_pytorch(framework: str) -> None:
    given = case()
    layer = torch.nn.BatchNorm2d(CHANNELS, dtype=torch.float64)
    values = {"weight": given.weight, "bias": given.bias, "mean": given.mean, "var": given.variance}
    with torch.no_grad():
        for name, array in values.items():
            place = f"running_{name}" if name in ("mean", "var") else name
            getattr(layer, place).copy_(torch.from_numpy(array))
    x = torch.from_numpy(given.x).requires_grad_()
    output = layer(x)
    output.backward(torch.from_numpy(given.upstream))
    expected = (
        output.detach(),
        x.grad,
        layer.weight.grad,
        layer.bias.grad,
        layer.running_mean,
        layer.running_var,
    )
    check(EACH[framework](given), Found(*(t.numpy() for t in expected)), 1e-13)


@each
def test_rows_beyond_the_data_change_nothing(framework: str) -> None:
    short, filled = case(5), case(8, real=5)
    for name in ("x", "upstream"):
        getattr(filled, name)[:5] = getattr(short, name)
    for name in ("weight", "bias", "mean", "variance"):
        setattr(filled, name, getattr(short, name))
    expected, found = EACH[framework](short), EACH[framework](filled)
    found.output, found.x = found.output[:5], found.x[:5]
    check(found, expected, 1e-15)


@each
def test_one_value_has_no_unbiased_variance(framework: str) -> None:
    given = case(2, (1, 1), real=1)
    found = EACH[framework](given)
    np.testing.assert_allclose(found.output[0, :, 0, 0], given.bias, rtol=0, atol=1e-15)
    for name in ("mean", "variance"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))


@each
def test_statistics_that_are_not_finite_are_not_kept(framework: str) -> None:
    given = case()
    given.x[2, 1, 0, 0] = np.inf
    found = EACH[framework](given)
    expected = by_numpy(case())
    expected.mean[1], expected.variance[1] = given.mean[1], given.variance[1]
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-13)
    np.testing.assert_allclose(found.variance, expected.variance, rtol=1e-13)


@each
def test_repeated_forward_passes_move_nothing(framework: str) -> None:
    given = case()
    with recomputing():
        found = EACH[framework](given)
    expected = by_numpy(given)
    expected.mean, expected.variance = given.mean, given.variance
    check(found, expected, 1e-13)


@each
def test_a_small_variance_beside_a_large_mean_does_not_cancel(framework: str) -> None:
    given = case(shift=1e6)
    check(EACH[framework](given), by_numpy(given), 1e-9)


def test_16_bits_are_normalised_by_statistics_of_float32() -> None:
    given = case(32, (6, 6))
    rounded = torch.from_numpy(given.x).bfloat16()
    given.x = rounded.double().numpy()
    given.upstream = torch.from_numpy(given.upstream).bfloat16().double().numpy()
    expected = by_numpy(given)
    for found in (
        by_torch(given, torch.float32, torch.bfloat16),
        by_tensorflow(given, tf.float32, tf.bfloat16),
    ):
        for name, tolerance in (("output", 2.0**-8), ("x", 2.0**-7)):
            scale = np.abs(getattr(expected, name)).max()
            np.testing.assert_allclose(
                getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance * scale, err_msg=name
            )
        # Nothing of these is rounded to 16 bits.
        for name in ("weight", "bias", "mean", "variance"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)


@each
def test_rows_beyond_the_data_do_not_grow_from_layer_to_layer(framework: str) -> None:
    given = case(3, (1, 1), real=1)
    for _ in range(60):
        # A single value has no variance; others would be multiplied by 1 / sqrt(epsilon) each time.
        given.x = EACH[framework](given).output + np.arange(3.0)[:, None, None, None]
    assert np.abs(given.x).max() < 10.0
