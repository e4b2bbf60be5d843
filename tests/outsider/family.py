"""A family that this package does not know: one linear map."""

from __future__ import annotations

from typing import Any, Literal

from hvdtrain.core.families.initializers import ZEROS, Normal
from hvdtrain.core.families.weights import TRANSPOSED, Weight
from hvdtrain.core.spec.sections import ModelSection

TASKS = ("tests.outsider.task:Regression",)
DROPOUT = ()
NETWORKS = {"torch": "tests.outsider.in_torch", "tensorflow": "tests.outsider.in_tensorflow"}


class ModelSpec(ModelSection):
    """How many numbers a row has."""

    model_type: Literal["linear"] = "linear"
    width: int = 2


def weights(model: ModelSpec) -> tuple[Weight, ...]:
    return (
        Weight("linear.weight", (2, model.width), True, Normal(0.1), TRANSPOSED),
        Weight("linear.bias", (2,), False, ZEROS),
    )


def untrained(model: ModelSpec) -> tuple[Weight, ...]:
    return ()


def activation_bytes(model: ModelSpec, rows: int, length: int, predictions: int, itemsize: int) -> int:
    return rows * (model.width + 2) * 8


def product_elements(model: ModelSpec) -> int:
    return 2 * model.width + 2


def flops(model: ModelSpec, length: int, predictions: int) -> int:
    return 3 * 2 * 2 * model.width


def hf_config(model: ModelSpec) -> dict[str, Any]:
    return {"width": model.width}
