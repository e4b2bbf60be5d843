"""Two hosts that reach each other by ssh only: the same commands as on a real cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.launch.cluster import Cluster, emulated_hosts

HERE = Path(__file__).parent
ENV = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
HANG_S = 120.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[Cluster]:
    with emulated_hosts(2) as cluster:
        yield cluster


def driven(launch: tuple[str, str], hosts: str, *program: str) -> list[str]:
    script, ranks = str(HERE / "ranks" / program[0]), str(1 + hosts.count(","))
    return [sys.executable, str(HERE / "drive.py"), ranks, hosts, *launch, script, *program[1:]]


def drive(cluster: Cluster, folder: Path, launch: tuple[str, str], *program: str) -> tuple[int, str]:
    command = driven(launch, "nodea:1,nodeb:1", *program)
    return cluster.run("nodea", command, cwd=folder, env=ENV, timeout_s=HANG_S)


def wait_until_no_process_is_left(cluster: Cluster) -> None:
    deadline = time.monotonic() + HANG_S
    while any(cluster.processes(name) for name in cluster.names):
        assert time.monotonic() < deadline, "a process outlived its job"
        time.sleep(0.1)


@pytest.mark.parametrize("launch", [("horovodrun", "gloo"), ("mpirun", "mpi")])
def test_rank_that_computes_elsewhere_ends_with_the_job(
    two_hosts: Cluster, launch: tuple[str, str], tmp_path: Path
) -> None:
    _, output = drive(
        two_hosts, tmp_path, launch, "fault.py", "raise-while-others-compute", "0", str(tmp_path)
    )
    assert (
        output.splitlines()[-1]
        == "hvdtrain: rank 0 failed first (exit status 1): ValueError: planned failure"
    )
    wait_until_no_process_is_left(two_hosts)


@pytest.mark.parametrize(
    ("launch", "wire"),
    [
        (("auto", "auto"), "gloo"),
        (("mpirun", "auto"), "mpi"),
        (("horovodrun", "mpi"), "mpi"),
    ],
)
def test_ranks_on_two_hosts(two_hosts: Cluster, launch: tuple[str, str], wire: str, tmp_path: Path) -> None:
    status, output = drive(two_hosts, tmp_path, launch, "allreduce.py")
    assert status == 0, output
    results = sorted(line[line.index("RESULT") :] for line in output.splitlines() if "RESULT" in line)
    total = [0.0, 3.0, 6.0, 9.0]
    assert results == [
        f"RESULT {rank}/2 {wire} {total} {two_hosts.names[rank]} {tmp_path}" for rank in (0, 1)
    ]


@pytest.mark.parametrize("wire", ["--gloo", "--mpi"])
def test_no_command_line_on_either_host_shows_what_is_private(
    two_hosts: Cluster, wire: str, tmp_path: Path
) -> None:
    script = str(HERE / "ranks" / "secret.py")
    command = ["horovodrun", "--verbose", "--disable-cache", "-np", "2", "-H", "nodea:1,nodeb:1", wire]
    private = {"HF_TOKEN": "token-of-the-user", "LINES_OF_TEXT": 'it\'s\n$(false) `false` "two" \\ lines\n'}
    # Under MPI no server asks, and the ranks are told nothing.
    env = ENV | private | {"HOROVOD_JOB_SECRET": "of-another-job"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    shown = set()
    with ThreadPoolExecutor() as pool:
        job = pool.submit(
            two_hosts.run, "nodea", [*command, sys.executable, script, str(tmp_path)],
            cwd=tmp_path, env=env | {"PATH": path}, timeout_s=HANG_S,
        )  # fmt: skip
        while not job.done():
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    shown.add(" ".join(process.cmdline()))
    status, output = job.result()
    assert status == 0, output
    assert any("horovod.runner.task_fn" in line and line.startswith("ssh") for line in shown)
    notes = [(tmp_path / str(rank)).read_text().split("\0") for rank in (0, 1)]
    for total, secret, token, lines, address in notes:
        assert (total, token, lines) == ("2.0", *private.values())
        assert (address, len(secret)) == (("10.88.0.11", 64) if wire == "--gloo" else ("", 0))
    assert len({secret for _, secret, *_ in notes}) == 1
    hidden = [private["HF_TOKEN"], "of-another-job", *filter(None, [notes[0][1]])]
    assert not [line for line in [*shown, output] for text in hidden if text in line]


@pytest.mark.parametrize(
    ("launch", "fault", "last_words"),
    [
        # Over ssh a signal arrives as ssh's own exit status.
        (("horovodrun", "gloo"), "kill", "(killed, or its host lost)"),
        (("horovodrun", "gloo"), "raise", "planned failure"),
        (("mpirun", "mpi"), "kill", "(killed by SIGKILL)"),
        (("mpirun", "mpi"), "raise", "planned failure"),
    ],
)
def test_rank_failing_on_the_other_host(
    two_hosts: Cluster, launch: tuple[str, str], fault: str, last_words: str, tmp_path: Path
) -> None:
    status, output = drive(two_hosts, tmp_path, launch, "fault.py", fault, "1", str(tmp_path))
    assert status != 0
    last = output.splitlines()[-1]
    assert last.startswith("hvdtrain: rank 1 failed first"), output
    assert last.endswith(last_words)
    wait_until_no_process_is_left(two_hosts)


@pytest.mark.parametrize(
    ("launch", "hosts"),
    [
        (("horovodrun", "gloo"), "nodea:1,nodeb:1"),
        (("mpirun", "mpi"), "nodea:1,nodeb:1"),
        (("horovodrun", "mpi"), "nodea:1,nodeb:1"),
        # On the other host alone, no rank here can tell it of the end.
        (("mpirun", "mpi"), "nodeb:1"),
        (("horovodrun", "mpi"), "nodeb:1"),
    ],
)
def test_killing_the_driver_ends_the_ranks_on_every_host(
    two_hosts: Cluster, launch: tuple[str, str], hosts: str, tmp_path: Path
) -> None:
    command = driven(launch, hosts, "fault.py", "none", "0", str(tmp_path))
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            two_hosts.inside("nodea", command, tmp_path), env=ENV, stdout=log, stderr=log
        )
        deadline = time.monotonic() + HANG_S
        while not (tmp_path / "working").exists():
            assert driver.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        driver.kill()
        driver.wait()
        wait_until_no_process_is_left(two_hosts)
