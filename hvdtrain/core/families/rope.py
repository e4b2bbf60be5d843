"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864): one table for both frameworks."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hvdtrain.core.spec.sections import Count, Section

_Positive = Annotated[float, Field(gt=0.0)]
# What each type needs beside `rope_theta`.
_NEEDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


class RopeParameters(Section):
    """How positions turn queries and keys, in the names of Hugging Face's `rope_parameters`.

    Attributes:
        rope_type: `linear` divides positions by `factor`; `llama3` divides slow frequencies by it.
        rope_theta: base of the geometric series of wavelengths.
        factor: by how much longer sequences may be than those of the original model.
        low_freq_factor: wavelengths above `original_max_position_embeddings` / this are scaled whole.
        high_freq_factor: wavelengths below `original_max_position_embeddings` / this stay.
        original_max_position_embeddings: positions of the original model.
    """

    rope_type: Literal["default", "linear", "llama3"] = "default"
    rope_theta: _Positive = 10000.0
    factor: Annotated[float, Field(ge=1.0)] | None = None
    low_freq_factor: _Positive | None = None
    high_freq_factor: _Positive | None = None
    original_max_position_embeddings: Count | None = None

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> RopeParameters:
        needed = _NEEDS[self.rope_type]
        for name in _NEEDS["llama3"]:
            given = getattr(self, name) is not None
            if given and name not in needed:
                raise ValueError(f"rope_type {self.rope_type} has no {name}: leave it out")
            if not given and name in needed:
                raise ValueError(f"rope_type {self.rope_type} needs {name}")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and low >= high:
            raise ValueError(f"low_freq_factor {low} is not below high_freq_factor {high}")
        return self

    def hf_config(self) -> dict[str, Any]:
        """What `config.json` has: the fields of the type."""
        return self.model_dump(exclude_none=True)


def rope_table(
    rope: RopeParameters, head_dim: int, length: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines and sines of the angles by which positions turn the pairs of a head's elements.

    Element i of a head makes a pair with element i + head_dim / 2.

    Args:
        rope: the parameters.
        head_dim: elements of a head, an even number.
        length: how many positions, from 0.

    Returns:
        Two arrays, float64 (length, head_dim / 2).
    """
    frequencies = rope.rope_theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if rope.rope_type == "linear":
        assert rope.factor
        frequencies = frequencies / rope.factor
    elif rope.rope_type == "llama3":
        frequencies = _llama3(rope, frequencies)
    angles = np.arange(length)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def _llama3(rope: RopeParameters, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slow frequencies divided by the factor, fast ones as they are, and those between in between."""
    low, high, original = rope.low_freq_factor, rope.high_freq_factor, rope.original_max_position_embeddings
    assert low and high and original and rope.factor
    turns = original * frequencies / (2.0 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / rope.factor)
