"""The hosts of an elastic job: which there are, in which order they are used, and the blacklist."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hvdtrain.core.errors import LaunchError
from hvdtrain.launch.hosts import Host

# Horovod's limit.
_LONGEST_COOLDOWN = 3600


@dataclass
class _Sentence:
    """A host's place on the blacklist.

    Attributes:
        count: how often it has been put there.
        until: when it comes off; None: it stays.
    """

    count: int
    until: float | None


class Roster:
    """Hosts by name. Those that were there before keep their places, so that rank 0 stays where it is."""

    def __init__(
        self,
        cooldown: tuple[int, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Begin without hosts.

        Args:
            cooldown: the least and the most seconds on the blacklist; None: a host stays there.
            clock: the time in seconds.
            draw: a number from 0 to 1.

        Raises:
            LaunchError: the cooldown is none that Horovod would take.
        """
        if cooldown and not 1 <= cooldown[0] <= cooldown[1] <= _LONGEST_COOLDOWN:
            least, most = cooldown
            raise LaunchError(
                f"--blacklist-cooldown-range {least} {most}: give two numbers of seconds, the lesser first, "
                f"from 1 to {_LONGEST_COOLDOWN}"
            )
        self._cooldown, self._clock, self._draw = cooldown, clock, draw
        self._slots: dict[str, int] = {}
        self._blacklist: dict[str, _Sentence] = {}

    def update(self, found: Iterable[Host]) -> None:
        """Take in what hosts there are now; new ones come last."""
        slots = {host.name: host.slots for host in found}
        order = [name for name in self._slots if name in slots]
        self._slots = {name: slots[name] for name in (*order, *slots)}

    def blacklist(self, name: str) -> float | None:
        """Put a host on the blacklist.

        With a cooldown it comes off after twice the least seconds the first time and twice as many each time
        after that, and a random part of the least seconds more, but never after more than the most.

        Returns:
            For how many seconds; None: for good.
        """
        sentence = self._blacklist.setdefault(name, _Sentence(0, None))
        sentence.count += 1
        if self._cooldown is None:
            return None
        least, most = self._cooldown
        # Horovod's rule; the exponent is bounded, since a job may run for months.
        seconds = min(most, least * 2 ** min(sentence.count, 20) + self._draw() * least)
        sentence.until = self._clock() + seconds
        return seconds

    def hosts(self) -> tuple[Host, ...]:
        """The hosts that are not on the blacklist, in the order in which they are used."""
        return tuple(Host(n, slots) for n, slots in self._slots.items() if not self._is_out(n))

    def _is_out(self, name: str) -> bool:
        sentence = self._blacklist.get(name)
        return sentence is not None and (sentence.until is None or self._clock() < sentence.until)
