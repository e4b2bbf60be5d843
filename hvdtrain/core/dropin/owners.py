"""Which rank updates which parameter of a user's model, with ZeRO stage 1.

Parameters are not cut: an optimizer of the user's own may need a whole one, for its norm or its factors.
PyTorch's ZeroRedundancyOptimizer does the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from hvdtrain.core.dropin.layout import Parameter


class Owners:
    """Shares parameters out over ranks, so that each has about as many elements as any other.

    A parameter goes to the rank that has the fewest elements, the largest parameters first. So no rank has
    more than its share and the largest parameter. Every rank comes to the same result.

    Attributes:
        ranks: how many there are.
        rank: this one.
    """

    def __init__(self, ranks: int, rank: int) -> None:
        """Nothing is shared out.

        Args:
            ranks: how many there are.
            rank: this one.
        """
        self.ranks, self.rank = ranks, rank
        self._owner: dict[str, int] = {}
        self._elements = [0] * ranks

    def add(self, parameters: Sequence[Parameter]) -> None:
        """Share out those that have no owner yet; every rank gives the same in the same order."""
        new = [p for p in parameters if p.name not in self._owner]
        for parameter in sorted(new, key=_elements, reverse=True):
            owner = min(range(self.ranks), key=self._elements.__getitem__)
            self._owner[parameter.name] = owner
            self._elements[owner] += _elements(parameter)

    def owns(self, name: str) -> bool:
        """Whether this rank updates a parameter."""
        return self._owner[name] == self.rank

    def of(self, name: str) -> int:
        """The rank that updates a parameter."""
        return self._owner[name]

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Names as they lie behind each other when ranks have gathered what they own: by rank, as given."""
        return sorted(names, key=self._owner.__getitem__)


def _elements(parameter: Parameter) -> int:
    # Optimizers keep nothing of what is frozen.
    return math.prod(parameter.shape) if parameter.trainable else 0
