"""Hosts and slots: which machines a job may use and how many ranks each takes."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from hvdtrain.core.errors import LaunchError
from hvdtrain.core.process.paths import user_path

# What Horovod's own launcher accepts as a name; IPv6 literals are not among them.
_NAME = re.compile(r"[\w.-]+")
_KEYS = ("slots", "max_slots")


@dataclass(frozen=True)
class Host:
    """One machine and how many ranks it may run.

    Args:
        name: host name or IPv4 address that ssh can reach.
        slots: ranks this host may run, at least 1.
    """

    name: str
    slots: int


def parse_hostfile(path: Path) -> tuple[Host, ...]:
    """Reads a hostfile in Horovod's form or in Open MPI's.

    Each line is `host slots=N`, `host slots=N max_slots=M`, `host:N` or `host` (one slot); `#` starts a
    comment. A host named on several lines gets the sum of their slots, as Open MPI does.

    Args:
        path: the hostfile.

    Returns:
        The hosts in the order of the file.

    Raises:
        LaunchError: the file cannot be read, names no host, or has a bad line (the message says which).
    """
    path = user_path(path, "hostfile", LaunchError)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"hostfile {path}: cannot be read: {error}") from error
    entries = [
        _parse_line(text, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if (text := line.split("#", 1)[0].strip())
    ]
    if not entries:
        raise LaunchError(f"hostfile {path}: names no host; write one `host slots=N` a line")
    return _merge(entries)


def parse_hosts(text: str, where: str = "-H") -> tuple[Host, ...]:
    """Reads hosts as given to `-H`, for instance `node1:2,node2:2`.

    Args:
        text: comma-separated `host:slots`; a host without `:slots` has one slot.
        where: the text stands, for the error.

    Returns:
        The hosts in the order given, one entry a name.

    Raises:
        LaunchError: an entry is empty or malformed.
    """
    return _merge([_parse_item(item.strip(), f"{where} {text}") for item in text.split(",")])


def format_hosts(hosts: Iterable[Host]) -> str:
    """Writes hosts as `-H` of horovodrun and of mpirun takes them: `node1:2,node2:2`."""
    return ",".join(f"{host.name}:{host.slots}" for host in hosts)


def host_of(hosts: Sequence[Host], rank: int) -> str:
    """The host that a rank runs on: ranks fill the hosts' slots in order."""
    names = [host.name for host in hosts for _ in range(host.slots)]
    return names[rank]


def hosts_of(hosts: Sequence[Host], ranks: Sequence[int]) -> tuple[str, ...]:
    """The hosts that some ranks run on, each once."""
    return tuple(dict.fromkeys(host_of(hosts, rank) for rank in ranks))


def take_slots(hosts: Sequence[Host], np: int) -> tuple[Host, ...]:
    """Keeps exactly `np` slots, filling hosts in order.

    Gloo starts a rank on every slot listed, even beyond `-np`, so a launcher is never told of more.

    Args:
        hosts: hosts and their slots.
        np: ranks wanted, at least 1.

    Returns:
        Hosts whose slots add up to `np`.

    Raises:
        LaunchError: `np` is below 1, or the hosts have fewer slots.
    """
    if np < 1:
        raise LaunchError(f"-np {np}: at least one rank is needed")
    slots = sum(host.slots for host in hosts)
    if np > slots:
        raise LaunchError(
            f"-np {np}: the hosts given have {slots} slots ({format_hosts(hosts)}); "
            "ask for fewer ranks or add slots"
        )
    taken: list[Host] = []
    for host in hosts:
        if np > 0:
            taken.append(Host(host.name, min(host.slots, np)))
            np -= taken[-1].slots
    return tuple(taken)


def is_local(hosts: Iterable[Host]) -> bool:
    """Says whether every host is this machine, by the addresses its name resolves to."""
    return all(_is_own_name(host.name) for host in hosts)


def _parse_line(line: str, where: str) -> Host:
    first, *settings = re.sub(r"\s*=\s*", "=", line).split()
    if not settings:
        return _parse_item(first, where)
    values = dict(_parse_setting(setting, where) for setting in settings)
    slots = values.get("slots", 1)
    if values.get("max_slots", slots) < slots:
        raise LaunchError(f"{where}: max_slots={values['max_slots']} is less than slots={slots}")
    return Host(_check_name(first, where), slots)


def _parse_setting(setting: str, where: str) -> tuple[str, int]:
    key, equals, value = setting.partition("=")
    key = key.replace("-", "_")
    if not equals or key not in _KEYS:
        near = get_close_matches(key, _KEYS, n=1)
        hint = f"; did you mean `{near[0]}=N`?" if near else ""
        raise LaunchError(f"{where}: expected slots=N or max_slots=N, found `{setting}`{hint}")
    return key, _parse_count(value, where)


def _parse_item(item: str, where: str) -> Host:
    name, colon, slots = item.partition(":")
    return Host(_check_name(name, where), _parse_count(slots, where) if colon else 1)


def _parse_count(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise LaunchError(f"{where}: slots must be a whole number, 1 or more; found `{text}`")
    return int(text)


def _check_name(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise LaunchError(f"{where}: expected a host name or IPv4 address, found `{name}`")
    return name


def _merge(entries: Iterable[Host]) -> tuple[Host, ...]:
    slots: dict[str, int] = {}
    for host in entries:
        slots[host.name] = slots.get(host.name, 0) + host.slots
    return tuple(Host(name, count) for name, count in slots.items())


def _is_own_name(name: str) -> bool:
    try:
        address = socket.gethostbyname(name)
    except (OSError, UnicodeError):
        # The latter for a name that none can have, as one with an empty part.
        return False
    # Only an address of this machine can be bound.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
