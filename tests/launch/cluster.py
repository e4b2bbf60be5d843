"""Hosts emulated on this machine: network namespaces on one bridge, each with a name and an ssh server.

    with emulated_hosts(2) as cluster:
        cluster.run("nodea", ["horovodrun", "-np", "2", "-H", "nodea:1,nodeb:1", ...])

Needs root, iproute2 and openssh-server. The machine's own network and files stay as they are.
"""

from __future__ import annotations

import os
import shutil
import signal
import string
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_NETWORK = "10.88.0"
_PREFIX = f"hvdt{os.getpid()}"
_START_S = 10.0
_SSHD = "/usr/sbin/sshd"
_SSHD_CONFIG = """\
HostKey {folder}/host_key
PidFile {folder}/{name}.pid
AuthorizedKeysFile {folder}/client_key.pub
PasswordAuthentication no
UsePAM no
StrictModes no
MaxStartups 100
"""
_SSH_CONFIG = """\
IdentityFile {folder}/client_key
UserKnownHostsFile {folder}/known_hosts
BatchMode yes
"""
# Runs in mount and UTS namespaces of the node's own.
_BOOT = """\
set -e
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/ssh_config.d /etc/ssh/ssh_config.d
mount -t tmpfs tmpfs /dev/shm
exec {sshd} -f {folder}/{name}.conf -E {folder}/{name}.log
"""


@dataclass(frozen=True)
class Cluster:
    """Running nodes.

    Args:
        names: host names, which every node resolves.
        pids: process id of each node's ssh server, whose namespaces are the node's.
    """

    names: tuple[str, ...]
    pids: Mapping[str, int]

    def run(
        self, name: str, command: Sequence[str], cwd: Path, env: Mapping[str, str], timeout_s: float
    ) -> tuple[int, str]:
        """Runs a command on a node; returns its exit status and its two outputs together."""
        done = subprocess.run(
            self.inside(name, command, cwd),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return done.returncode, done.stdout

    def inside(self, name: str, command: Sequence[str], cwd: Path) -> list[str]:
        """The command line that runs a command on a node; its process is that command's from then on."""
        return ["nsenter", "-t", str(self.pids[name]), "-n", "-u", "-m", f"--wd={cwd}", *command]

    def cut(self, name: str, back: bool = False) -> None:
        """Has a node's frames vanish, of which neither side is told; or ends that."""
        _ip(
            "-n",
            _namespace("switch"),
            "link",
            "set",
            name,
            *(("master", "bridge") if back else ("nomaster",)),
        )

    def sever(self, name: str, other: str, back: bool = False) -> None:
        """Has what a node sends to another vanish, but nothing else; or ends that."""
        address = _address(self.names.index(other))
        _ip("-n", _namespace(name), "route", "del" if back else "add", "blackhole", address)

    def signal(self, name: str, number: signal.Signals, ssh_server: bool = False) -> None:
        """Sends a signal to every process on a node, with or without its ssh server."""
        for pid in self.processes(name) | ({self.pids[name]} if ssh_server else set()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def processes(self, name: str) -> set[int]:
        """Process ids on a node, without its ssh server."""
        pids = _ip("netns", "pids", _namespace(name)).split()
        return {int(pid) for pid in pids} - {self.pids[name]}


@contextmanager
def emulated_hosts(count: int) -> Iterator[Cluster]:
    """Starts `count` hosts named nodea, nodeb, … and ends every process on them afterwards.

    Raises:
        RuntimeError: this machine cannot emulate hosts; the message says what is missing.
    """
    _check_means()
    names = tuple(f"node{letter}" for letter in string.ascii_lowercase[:count])
    folder = Path(tempfile.mkdtemp(prefix="hvdtrain-hosts-"))
    try:
        _write_files(folder, names)
        _join(names)
        yield Cluster(names, {name: _boot(name, folder) for name in names})
    finally:
        for namespace in (*map(_namespace, names), _namespace("switch")):
            _end(namespace)
        shutil.rmtree(folder)


def _check_means() -> None:
    missing = [
        tool for tool in ("ip", "nsenter", "unshare", _SSHD, "ssh-keygen") if shutil.which(tool) is None
    ]
    if os.geteuid() != 0 or missing:
        raise RuntimeError(
            "emulated hosts need root, iproute2 and openssh-server; "
            + (f"not found: {', '.join(missing)}" if missing else "this process is not root")
        )


def _write_files(folder: Path, names: Sequence[str]) -> None:
    for key in ("host_key", "client_key"):
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    addresses = [f"{_address(at)} {name}" for at, name in enumerate(names)]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *addresses, ""]))
    (folder / "hosts").chmod(0o644)
    (folder / "known_hosts").write_text(f"node* {(folder / 'host_key.pub').read_text()}")
    (folder / "ssh_config.d").mkdir()
    (folder / "ssh_config.d" / "hosts.conf").write_text(_SSH_CONFIG.format(folder=folder))
    for name in names:
        (folder / f"{name}.conf").write_text(_SSHD_CONFIG.format(folder=folder, name=name))
    Path("/run/sshd").mkdir(exist_ok=True)


def _join(names: Sequence[str]) -> None:
    switch = _namespace("switch")
    _ip("netns", "add", switch)
    _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
    _ip("-n", switch, "link", "set", "bridge", "up")
    for at, name in enumerate(names):
        node = _namespace(name)
        _ip("netns", "add", node)
        _ip("-n", switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", node)
        _ip("-n", switch, "link", "set", name, "master", "bridge", "up")
        _ip("-n", node, "address", "add", f"{_address(at)}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", node, "link", "set", link, "up")


def _boot(name: str, folder: Path) -> int:
    script = _BOOT.format(name=name, folder=folder, sshd=_SSHD)
    _call("ip", "netns", "exec", _namespace(name), "unshare", "--uts", "--mount", "sh", "-c", script)
    pid_file = folder / f"{name}.pid"
    deadline = time.monotonic() + _START_S
    while not pid_file.exists() or not pid_file.read_text().strip():
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"the ssh server of {name} did not start: {(folder / f'{name}.log').read_text()}"
            )
        time.sleep(0.05)
    return int(pid_file.read_text())


def _end(namespace: str) -> None:
    if namespace not in _ip("netns", "list"):
        return
    for pid in map(int, _ip("netns", "pids", namespace).split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _ip("netns", "delete", namespace)


def _namespace(name: str) -> str:
    return f"{_PREFIX}-{name}"


def _address(at: int) -> str:
    return f"{_NETWORK}.{11 + at}"


def _ip(*arguments: str) -> str:
    return _call("ip", *arguments)


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"emulated hosts: `{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
