"""What doctor says of this machine and of the hosts it reaches."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil

from hvdtrain.engine.rows import Row, Status
from hvdtrain.launch.hosts import Host, is_local

# Below this a rank of even the default model does not fit beside its framework.
_MEMORY_PER_RANK = 1 << 30
_CONNECT_SECONDS = 5


def ssh_row(needed: bool) -> Row:
    """Whether an ssh client is here; several hosts need one."""
    path = shutil.which("ssh")
    if path:
        return Row("ssh", "ok", path)
    status: Status = "missing" if needed else "absent"
    return Row("ssh", status, "no client", "for several hosts: apt-get install openssh-client")


def hostname_row() -> Row:
    """Whether this machine's own name has an address: Gloo ends in a segmentation fault when it has none."""
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None)[0][4][0]
    except OSError:
        todo = f"add a line `127.0.1.1 {name}` to /etc/hosts: without it Gloo crashes"
        return Row("hostname", "missing", f"{name} has no address", todo)
    return Row("hostname", "ok", f"{name} is {address}")


def core_row() -> Row:
    """Cores this process may use, and the threads a rank gets when they are shared out."""
    cores = len(os.sched_getaffinity(0))
    counts = sorted({1, 2, cores} & set(range(1, cores + 1)))
    shares = ", ".join(f"-np {ranks}: {cores // ranks}" for ranks in counts)
    return Row("cores", "ok", f"{cores}; threads per rank at {shares}")


def memory_row() -> Row:
    """Memory available now."""
    memory = psutil.virtual_memory()
    found = f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}"
    if memory.available < _MEMORY_PER_RANK:
        return Row(
            "memory", "absent", found, "a rank takes about 1 GiB and its model: free some, or use fewer ranks"
        )
    return Row("memory", "ok", found)


def gpu_row() -> Row:
    """The GPUs that the driver shows."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return Row("gpu", "absent", "none: no NVIDIA driver answers")
    gpus = done.stdout.strip().splitlines() if done.returncode == 0 else []
    return Row("gpu", "ok", "; ".join(gpus)) if gpus else Row("gpu", "absent", "none")


def reach_rows(hosts: Sequence[Host]) -> list[Row]:
    """One row a host: whether ssh gets there without asking for anything; all are tried at once."""
    if not hosts or not shutil.which("ssh"):
        return []
    with ThreadPoolExecutor(max_workers=min(32, len(hosts))) as pool:
        return list(pool.map(_reach, hosts))


def _reach(host: Host) -> Row:
    name = f"host {host.name}"
    if is_local([host]):
        return Row(name, "ok", f"this machine, {host.slots} slots")
    options = (
        "-o",
        "BatchMode=yes",
        "-o",
        f"ConnectTimeout={_CONNECT_SECONDS}",
        "-o",
        "StrictHostKeyChecking=accept-new",
    )
    done = subprocess.run(
        ["ssh", *options, host.name, "true"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode == 0:
        return Row(name, "ok", f"reachable, {host.slots} slots")
    said = (done.stderr.strip().splitlines() or ["no answer"])[-1]
    return Row(
        name,
        "missing",
        said,
        f"make `ssh {host.name} true` work without a password (ssh-copy-id {host.name})",
    )
