"""Arguments of `hvdtrain.train`: what is no spec, no name and no function is told before anything starts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvdtrain.core.errors import SpecError
from hvdtrain.core.run.own_job import OwnCode, own_spec
from hvdtrain.core.spec.reference import describe

SPEC: dict[str, Any] = {"batch": {"per_device_train_batch_size": 8}, "max_steps": 3}


def build() -> None: ...


def test_numbers_of_numpy_and_paths_are_what_they_are() -> None:
    spec = {
        **SPEC,
        "batch": {"per_device_train_batch_size": np.int64(8)},
        "model": {
            "args": {"rate": np.float32(0.5), "on": np.bool_(True), "folder": Path("/data"), "n": (1, 2)}
        },
    }
    found = own_spec(spec, "torch", OwnCode(build, {}))
    assert found.batch.per_device_train_batch_size == 8
    assert found.model.args == {"rate": 0.5, "on": True, "folder": "/data", "n": [1, 2]}


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        (None, {}, "spec: expected a file, a packaged spec's name, or a mapping, found None"),
        ([SPEC], {}, "found a list"),
        ({**SPEC, "model": {"args": {"x": np.ones(2)}}}, {}, r"model\.args\.x: expected what YAML can hold"),
        (SPEC, {"metrics": "accuracy"}, "metrics: expected a list of names and functions, found 'accuracy'"),
        (SPEC, {"metrics": ["accuracy", 3]}, r"metrics\[1\]: expected a name or a function, found an int"),
        (SPEC, {"loss": 3}, "loss: expected a name or a function, found an int"),
        (SPEC, {"collate_fn": 3}, "collate_fn: expected a name or a function, found an int"),
    ],
)
def test_wrong_arguments(spec: Any, code: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        own_spec(spec, "torch", OwnCode(build, {}, **code))


def test_every_object_has_a_description() -> None:
    here = __name__
    assert describe(partial(partial(build))) == f"{here}:build"
    assert describe(each for each in ()) == "builtins:generator"
    assert describe(np.float32(1)) == "numpy:float32"
