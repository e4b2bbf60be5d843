"""PyTorch's random generators, from which dropout is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


class Generators:
    """Those of this rank: the CPU's, and that of its GPU where there is one."""

    def __init__(self, network: Any) -> None:
        """Find them.

        Args:
            network: draws from them, as all modules do.
        """
        del network

    def read(self) -> dict[str, np.ndarray]:
        """Copies of their states; see `GeneratorState.read`."""
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()
        return {name: state.numpy().copy() for name, state in states.items()}

    def write(self, states: Mapping[str, np.ndarray]) -> None:
        """Set their states; see `GeneratorState.write`."""
        torch.set_rng_state(torch.from_numpy(states["cpu"]))
        if "cuda" in states:
            torch.cuda.set_rng_state(torch.from_numpy(states["cuda"]))

    def seed(self, seed: int) -> None:
        """Start them from a seed; see `GeneratorState.seed`."""
        torch.manual_seed(seed)
