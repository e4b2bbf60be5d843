"""Which ranks stopped: each tells rank 0 how far it is, on a wire of its own, since collectives may hang."""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hvdtrain.core.errors import TrainingError

_SECONDS_BETWEEN_REPORTS = 1.0
_SECONDS_TO_CONNECT = 30.0


@dataclass(frozen=True)
class Standing:
    """What rank 0 knows of one rank.

    Attributes:
        progress: how far it is; only grows.
        connected: whether it can still be heard.
        done: whether it has left training in good order.
    """

    progress: int = 0
    connected: bool = True
    done: bool = False


def verdict(standings: Mapping[int, Standing], still: float, timeout: float) -> str | None:
    """What is wrong, if anything is.

    Args:
        standings: of every rank.
        still: seconds since any of them came further.
        timeout: how many are too many.

    Returns:
        A message that names the ranks; None while they may be as they should.
    """
    training = {rank: s for rank, s in standings.items() if not s.done}
    lost = [rank for rank, s in training.items() if not s.connected]
    if lost:
        return f"{_ranks(lost)} ended without leaving training: look for the first error in the output"
    if still < timeout or not training:
        return None
    furthest = max(s.progress for s in training.values())
    behind = [rank for rank, s in training.items() if s.progress < furthest]
    left = [rank for rank, s in standings.items() if s.done]
    if behind:
        return f"{_ranks(behind)} stopped answering {still:.0f} s ago, and the others wait"
    if left:
        return (
            f"{_ranks(left)} left training {still:.0f} s ago, and the others wait: every rank needs the same "
            "number of batches; give fit steps_per_epoch, the least of any rank"
        )
    return None


class StallWatch:
    """One rank's end of the wire; rank 0's listens to all, and tells all what is wrong."""

    def __init__(
        self,
        rank: int,
        size: int,
        timeout: float,
        share: Callable[[bytes], bytes],
        stop: Callable[[str], None],
        host: str = "127.0.0.1",
    ) -> None:
        """Connect; every rank calls it.

        Args:
            rank: this one.
            size: number of ranks.
            timeout: seconds without progress that are too many.
            share: gives every rank rank 0's bytes.
            stop: ends this process with a message; called on another thread.
            host: name or address of rank 0's host, as others reach it.

        Raises:
            TrainingError: rank 0 cannot be reached.
        """
        self.progress = 0
        self._rank, self._size, self._timeout, self._stop = rank, size, timeout, stop
        self._ending = threading.Event()
        self._standings = dict.fromkeys(range(size), Standing())
        self._links: list[socket.socket] = []
        listener = socket.create_server(("", 0)) if rank == 0 else None
        mine = (
            {"host": host, "port": listener.getsockname()[1], "key": secrets.token_hex()} if listener else {}
        )
        place = json.loads(share(json.dumps(mine).encode()))
        self._key = place["key"]
        if listener:
            self._start(self._listen, listener)
            self._start(self._judge)
        try:
            link = socket.create_connection((place["host"], place["port"]), _SECONDS_TO_CONNECT)
        except OSError as error:
            raise TrainingError(
                f"StallGuard: rank {rank} cannot reach rank 0 at {place['host']}:{place['port']} ({error}): "
                "leave StallGuard out, or allow connections between the hosts"
            ) from None
        link.settimeout(None)
        self._start(self._report, link)
        self._start(self._hear, link)

    def close(self) -> None:
        """This rank has left training in good order."""
        self._ending.set()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _report(self, link: socket.socket) -> None:
        done = False
        while not done:
            done = self._ending.wait(_SECONDS_BETWEEN_REPORTS)
            message = {"key": self._key, "rank": self._rank, "progress": self.progress, "done": done}
            try:
                link.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                return

    def _hear(self, link: socket.socket) -> None:
        with link.makefile() as lines:
            try:
                message = lines.readline()
            except OSError:
                return
        if message and not self._ending.is_set():
            self._stop(json.loads(message))

    def _listen(self, listener: socket.socket) -> None:
        with listener:
            for _ in range(self._size):
                link, _ = listener.accept()
                self._links.append(link)
                self._start(self._serve, link)

    def _serve(self, link: socket.socket) -> None:
        rank = None
        with link.makefile() as lines:
            try:
                for line in lines:
                    message = json.loads(line)
                    if message["key"] != self._key:
                        return
                    rank = message["rank"]
                    self._standings[rank] = Standing(message["progress"], True, message["done"])
            except (OSError, ValueError, KeyError):
                # A broken link, or a stranger's words: told below as a rank that cannot be heard any more.
                pass
        if rank is not None and not self._standings[rank].done:
            self._standings[rank] = Standing(self._standings[rank].progress, connected=False)

    def _judge(self) -> None:
        known, since = dict(self._standings), time.monotonic()
        while not all(s.done for s in known.values()):
            time.sleep(_SECONDS_BETWEEN_REPORTS)
            now = dict(self._standings)
            if now != known:
                known, since = now, time.monotonic()
            found = verdict(now, time.monotonic() - since, self._timeout)
            if found:
                for link in self._links:
                    try:
                        link.sendall(json.dumps(found).encode() + b"\n")
                    except OSError:
                        continue
                return


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
