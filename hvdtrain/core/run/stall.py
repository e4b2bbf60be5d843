"""Which ranks stopped: each tells rank 0 how far it is, on a wire of its own, since collectives may hang."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hvdtrain.core.errors import TrainingError
from hvdtrain.core.run.agreement import name_ranks

_SECONDS_BETWEEN_REPORTS = 1.0
_SECONDS_TO_CONNECT = 30.0
# Whoever connects has proved within so many that it is a rank of this job.
_SECONDS_TO_PROVE = 10.0
_LONGEST_LINE = 4096


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
        return f"{name_ranks(lost)} ended without leaving training: look for the first error in the output"
    if still < timeout or not training:
        return None
    furthest = max(s.progress for s in training.values())
    behind = [rank for rank, s in training.items() if s.progress < furthest]
    left = [rank for rank, s in standings.items() if s.done]
    if behind:
        return f"{name_ranks(behind)} stopped answering {still:.0f} s ago, and the others wait"
    if left:
        return (
            f"{name_ranks(left)} left training {still:.0f} s ago, and the others wait: every rank needs the "
            "same number of batches; give fit steps_per_epoch, the least of any rank"
        )
    return None


class StallWatch:
    """One rank's end of the wire; rank 0's listens to all, and tells all what is wrong.

    Both ends of a connection prove that they know a secret, which rank 0 gave the others by `share`. Whoever
    cannot is no rank: strangers take nobody's place, and nothing they say counts.
    """

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
        self._over = threading.Event()
        self._links: dict[int, socket.socket] = {}
        # Ranks that are all here need no other interface.
        listener = socket.create_server((host if host == "127.0.0.1" else "", 0)) if rank == 0 else None
        mine = (
            {"host": host, "port": listener.getsockname()[1], "key": secrets.token_hex()} if listener else {}
        )
        place = json.loads(share(json.dumps(mine).encode()))
        self._key = bytes.fromhex(place["key"])
        if listener:
            self._start(self._listen, listener)
            self._start(self._judge)
        link = self._connect(place["host"], place["port"])
        self._start(self._report, link)
        self._start(self._hear, link)

    def close(self) -> None:
        """This rank has left training in good order."""
        self._ending.set()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _connect(self, host: str, port: int) -> socket.socket:
        """Connects to rank 0, and has it prove that it is."""
        try:
            link = socket.create_connection((host, port), _SECONDS_TO_CONNECT)
            asked, challenge = _read_line(link), secrets.token_hex()
            _write_line(
                link,
                {"rank": self._rank, "challenge": challenge, "proof": self._rank_proof(self._rank, asked)},
            )
            if not _same(self._judge_proof(challenge), _read_line(link)):
                raise ValueError("it does not know this job's secret")
            link.settimeout(None)
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"StallGuard: rank {self._rank} cannot reach rank 0 at {host}:{port} ({error}): "
                "leave StallGuard out, or allow connections between the hosts"
            ) from None
        return link

    def _rank_proof(self, rank: int, challenge: object) -> str:
        return hmac.new(self._key, f"rank {rank} {challenge}".encode(), hashlib.sha256).hexdigest()

    def _judge_proof(self, challenge: object) -> str:
        return hmac.new(self._key, f"judge {challenge}".encode(), hashlib.sha256).hexdigest()

    def _report(self, link: socket.socket) -> None:
        done = False
        while not done:
            done = self._ending.wait(_SECONDS_BETWEEN_REPORTS)
            try:
                _write_line(link, {"progress": self.progress, "done": done})
            except OSError:
                return

    def _hear(self, link: socket.socket) -> None:
        try:
            message = _read_line(link)
        except (OSError, ValueError):
            return
        if not self._ending.is_set():
            self._stop(str(message))

    def _listen(self, listener: socket.socket) -> None:
        with listener:
            while len(self._links) < self._size:
                try:
                    link, _ = listener.accept()
                except OSError:
                    # Shut down, because the last rank has come; or strangers hold all files for a moment.
                    time.sleep(0.1)
                    continue
                self._start(self._serve, link, listener)

    def _serve(self, link: socket.socket, listener: socket.socket) -> None:
        with link:
            rank = self._welcome(link, listener)
            if rank is None:
                return
            try:
                while not self._standings[rank].done:
                    message = _read_line(link)
                    self._standings[rank] = Standing(message["progress"], True, message["done"])
            except (OSError, ValueError):
                # Told below as a rank that cannot be heard any more.
                self._standings[rank] = Standing(self._standings[rank].progress, connected=False)
            # Its end of the connection tells it the verdict.
            self._over.wait()

    def _welcome(self, link: socket.socket, listener: socket.socket) -> int | None:
        """The rank that has connected; None for a stranger."""
        try:
            link.settimeout(_SECONDS_TO_PROVE)
            challenge = secrets.token_hex()
            _write_line(link, challenge)
            claim = _read_line(link)
            rank = int(claim["rank"])
            if not _same(self._rank_proof(rank, challenge), claim["proof"]) or rank in self._links:
                return None
            _write_line(link, self._judge_proof(claim["challenge"]))
            link.settimeout(None)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self._links[rank] = link
        if len(self._links) == self._size:
            listener.shutdown(socket.SHUT_RDWR)
        return rank

    def _judge(self) -> None:
        known, since = dict(self._standings), time.monotonic()
        while not all(s.done for s in known.values()):
            time.sleep(_SECONDS_BETWEEN_REPORTS)
            now = dict(self._standings)
            if now != known:
                known, since = now, time.monotonic()
            found = verdict(now, time.monotonic() - since, self._timeout)
            if found:
                for link in self._links.values():
                    try:
                        _write_line(link, found)
                    except OSError:
                        continue
                break
        self._over.set()


def _write_line(link: socket.socket, message: object) -> None:
    link.sendall(json.dumps(message).encode() + b"\n")


def _read_line(link: socket.socket) -> Any:
    """The next message; a byte at a time, so that nothing of the one behind it is taken.

    Raises:
        OSError: the connection broke.
        ValueError: there is no message, or one that is none of ours.
    """
    line = b""
    while not line.endswith(b"\n"):
        byte = link.recv(1)
        if not byte or len(line) == _LONGEST_LINE:
            raise ValueError("no message")
        line += byte
    return json.loads(line)


def _same(expected: str, found: object) -> bool:
    return hmac.compare_digest(expected.encode(), str(found).encode("utf-8", "replace"))
