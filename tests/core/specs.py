"""A small spec, and what is told of a bad one."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.job_spec import JobSpec, parse_spec

GOOD: dict[str, Any] = {
    "model": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "data": {"corpus": "python-docs"},
    "batch": {"per_device_train_batch_size": 8},
    "max_steps": 10,
}


def refusal(*overrides: str) -> str:
    """What is said about a good spec with these overrides."""
    with pytest.raises(SpecError) as caught:
        parse_spec(yaml.safe_dump(GOOD), overrides, where="job.yaml")
    return str(caught.value)


def accepted(*overrides: str) -> JobSpec:
    return parse_spec(yaml.safe_dump(GOOD), overrides)
