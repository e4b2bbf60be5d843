"""Which hosts an elastic job can use now: what a script or a list names, and what answers over ssh."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor

from hvdtrain.core.errors import LaunchError
from hvdtrain.launch.hosts import Host, is_local, parse_hosts
from hvdtrain.launch.roster import Roster

_OPTION = "--host-discovery-script"
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_DISCOVER = 30
_SECONDS_TO_ANSWER = 5
# For so long an answer counts: each look would otherwise log in to every host that stays idle.
_SECONDS_BETWEEN_QUESTIONS = 15.0
# As horovodrun calls it.
_SSH = ("ssh", "-o", "PasswordAuthentication=no", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes")
Find = Callable[[], Sequence[Host]]


def by_script(command: str) -> Find:
    """Discovery by a script that prints `host:slots` lines; a host without slots has one.

    Args:
        command: the script, with arguments if need be, as in a shell.

    Raises:
        LaunchError: there is no command in it.
    """
    where = f"{_OPTION} {command}"
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise LaunchError(f"{where}: cannot be read as a command: {error}") from None
    if not words:
        raise LaunchError(f"{_OPTION}: is empty; give a script that prints hosts")

    def find() -> Sequence[Host]:
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                # Such a name is refused below.
                errors="replace",
                timeout=_SECONDS_TO_DISCOVER,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LaunchError(f"{where}: has not ended within {_SECONDS_TO_DISCOVER} s") from None
        except OSError as error:
            raise LaunchError(f"{where}: cannot be run: {error.strerror}") from None
        if done.returncode:
            raise LaunchError(f"{where}: exit status {done.returncode}: {done.stderr.strip()}")
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        return parse_hosts(",".join(lines), _OPTION) if lines else ()

    return find


class Discovery:
    """Looks every second which hosts there are, in a thread of its own.

    Hosts in use are not asked whether they answer: their ranks say so.

    Attributes:
        looked: whether hosts have been asked since they were last used.
    """

    def __init__(self, find: Find, roster: Roster) -> None:
        """Look once.

        Args:
            find: the hosts there are.
            roster: takes them in.

        Raises:
            LaunchError: they cannot be found.
        """
        self._find, self._roster = find, roster
        self._lock = threading.Lock()
        self._in_use: AbstractSet[str] = frozenset()
        self._answered: dict[str, float] = {}
        self.looked = False
        self._complaint: str | None = None
        self._mute: AbstractSet[str] = frozenset()
        self._now, self._over = threading.Event(), False
        roster.update(find())
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> Discovery:
        return self

    def __exit__(self, *error: object) -> None:
        """Look no more."""
        self._over = True
        self._now.set()

    def use(self, names: Iterable[str]) -> None:
        """Say which hosts ranks run on from now on."""
        with self._lock:
            # Whether one that was in use answers is not known, and others may have been asked long ago.
            self._in_use, self._answered, self.looked = frozenset(names), {}, False
        self._now.set()

    def hosts(self) -> tuple[Host, ...]:
        """The hosts that can be used now, in the order in which they are used."""
        with self._lock:
            names = self._in_use | self._answered.keys()
            return tuple(host for host in self._roster.hosts() if host.name in names)

    def without(self, name: str) -> tuple[Host, ...]:
        """The hosts that are known and not on the blacklist, whether they answer or not, but this one."""
        with self._lock:
            return tuple(host for host in self._roster.hosts() if host.name != name)

    def blacklist(self, name: str) -> float | None:
        """As `Roster.blacklist`."""
        with self._lock:
            return self._roster.blacklist(name)

    def _watch(self) -> None:
        while not self._over:
            self._now.clear()
            try:
                self._look()
            except Exception as error:
                # Without this thread the job would wait in vain for hosts.
                self._tell(f"looking for hosts failed: {type(error).__name__}: {error}")
            self._now.wait(_SECONDS_BETWEEN_LOOKS)

    def _tell(self, complaint: str) -> None:
        """Say what is wrong, once."""
        if complaint != self._complaint:
            print(f"hvdtrain: {complaint}", file=sys.stderr)
        self._complaint = complaint

    def _look(self) -> None:
        found = None
        try:
            found = self._find()
        except LaunchError as error:
            # The hosts are those of before.
            self._tell(str(error))
        now = time.monotonic()
        with self._lock:
            if found is not None:
                self._roster.update(found)
            answered = self._answered
            recent = {n for n, at in answered.items() if now - at < _SECONDS_BETWEEN_QUESTIONS}
            names = [host.name for host in self._roster.hosts() if host.name not in self._in_use | recent]
        found_now = who_answers(names)
        mute = set(names) - found_now
        for name in sorted(mute - self._mute):
            print(f"hvdtrain: {name} does not answer over ssh, and is not used", file=sys.stderr)
        self._mute = self._mute - found_now | mute
        with self._lock:
            # `use` has replaced it where ranks were started or have come to an end meanwhile.
            for name in names:
                answered.pop(name, None)
            answered.update(dict.fromkeys(found_now, now))
            self.looked = self.looked or answered is self._answered
        if found is not None:
            self._complaint = None


def who_answers(names: Sequence[str]) -> AbstractSet[str]:
    """The hosts on which a command can be run over ssh; this one always is among them."""
    if not names:
        return frozenset()
    with ThreadPoolExecutor(len(names)) as pool:
        return {name for name, found in zip(names, pool.map(_answers, names), strict=True) if found}


def run_on_each(names: Iterable[str], *command: str) -> None:
    """Run a command on several hosts at once, over ssh where they are others; what fails is passed over."""

    def work(name: str) -> bool:
        return _run(command) if is_local([Host(name, 1)]) else run_on(name, *command)

    with ThreadPoolExecutor() as pool:
        deque(pool.map(work, names), maxlen=0)


def run_on(name: str, *command: str) -> bool:
    """Run a command on a host over ssh; False where the host does not answer or the command fails."""
    return _run([*_SSH, "-o", f"ConnectTimeout={_SECONDS_TO_ANSWER}", name, shlex.join(command)])


def _run(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=2 * _SECONDS_TO_ANSWER,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _answers(name: str) -> bool:
    return is_local([Host(name, 1)]) or run_on(name, "true")
