"""Strangers at every socket of running jobs: refused, nothing stored, read or run, and the jobs finish."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError

import psutil
import pytest
from horovod.runner.common.util import proof
from horovod.runner.util.cache import Cache
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine import stranger
from tests.engine.support import REPOSITORY
from tests.jobs.runs import HOROVODRUN

WORKER = Path(__file__).with_name("security_worker.py")
DRIVE = REPOSITORY / "tests" / "launch" / "drive.py"
HANG_S = 120.0
SECRET = "HOROVOD_JOB_SECRET"


@contextmanager
def job(folder: Path, *command: str) -> Iterator[psutil.Popen]:
    """A launcher whose ranks are running."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "HOROVOD_DYNAMIC_PROCESS_SETS": "1",
        # A program of the user's may have one, which no command line may show either.
        "HF_TOKEN": "token-of-the-user",
    }
    with (folder / "output").open("w") as out:
        launcher = psutil.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out)
    try:
        until(lambda: (folder / "ready0").exists() and (folder / "ready1").exists(), launcher, folder)
        yield launcher
    finally:
        if launcher.poll() is None:
            for process in (*launcher.children(recursive=True), launcher):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            launcher.wait()


def until(holds, launcher: psutil.Popen, folder: Path) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + HANG_S
    while not holds():
        said = (folder / "output").read_text()
        assert launcher.poll() is None, said[-3000:]
        assert time.monotonic() < deadline, said[-3000:]
        time.sleep(0.05)


def secret_of(pid: int) -> bytes:
    return bytes.fromhex(psutil.Process(pid).environ()[SECRET])


def refused_by_http_server(address: tuple[str, int], secret: bytes, marker: Path) -> None:
    """What strangers do at a server of values; `secret` is the job's, to see what came of it."""
    proof.ask(*address, "PUT", "kept", "0", b"private", secret)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(stranger.requests())
    def forged(said: bytes) -> None:
        answer = stranger.send(address, said)
        assert b"private" not in answer
        assert answer[:13] in (b"", b"HTTP/1.0 403 ", b"HTTP/1.0 400 "), answer

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=500))
    def random(said: bytes) -> None:
        assert b"private" not in stranger.send(address, said)

    forged()
    random()
    for path in stranger.PATHS:
        for method in ("PUT", "GET", "DELETE"):
            answer = stranger.send(address, stranger.request(method, path, stranger.payload(marker)))
            assert answer.startswith(b"HTTP/1.0 403 "), answer
    # A body of a terabyte is refused before it is sent, and one that never ends keeps nobody waiting.
    huge = stranger.request("PUT", "/kept/0", b"x" * 99, [("Content-Length", str(1 << 40))])
    slow = [stranger.dribble(address, huge) for _ in range(20)]
    slow += [stranger.dribble(address, b"PUT /kept/0 HTTP/1.1\r\nX-Hor") for _ in range(20)]
    assert stranger.send(address, huge)[:13] in (b"", b"HTTP/1.0 403 ")
    assert proof.ask(*address, "GET", "kept", "0", secret_key=secret) == b"private"
    for link in slow:
        link.close()
    # What an honest rank said does not serve a second time.
    said = honest(secret, "DELETE", "/other/0")
    assert stranger.send(address, said).startswith(b"HTTP/1.0 200 ")
    assert stranger.send(address, said).startswith(b"HTTP/1.0 403 ")
    # Nor for anything else.
    said = honest(secret, "DELETE", "/other/0").replace(b"/other/0", b"/kept/0")
    assert stranger.send(address, said).startswith(b"HTTP/1.0 403 ")
    said = honest(secret, "PUT", "/kept/0", b"private").replace(b"\r\nprivate", b"\r\nstrange")
    assert stranger.send(address, said).startswith(b"HTTP/1.0 403 ")
    assert proof.ask(*address, "GET", "kept", "0", secret_key=secret) == b"private"
    with pytest.raises(URLError, match="without proof of the job's secret"):
        proof.ask(*address, "GET", "kept", "0", secret_key=b"another")


def honest(secret: bytes, method: str, path: str, body: bytes = b"") -> bytes:
    nonce, digest = os.urandom(16).hex(), hashlib.sha256(body).hexdigest()
    signed = proof.sign(secret, method, path, nonce, digest)
    values = zip(stranger.HEADERS, (nonce, digest, signed), strict=False)
    return stranger.request(method, path, body, list(values))


def refused_by_service(address: tuple[str, int], marker: Path) -> None:
    """What strangers do at a service of messages, each with a digest in front."""

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=500))
    def random(said: bytes) -> None:
        assert stranger.send(address, said) == b""

    random()
    for length in (None, -1, 0, 2**31 - 1):
        assert stranger.send(address, stranger.message(marker, length)) == b""
    for _ in range(20):
        stranger.dribble(address, stranger.message(marker, 1 << 20)).close()


def shows_no_secret(launcher: psutil.Popen, secret: bytes) -> None:
    for process in (launcher, *launcher.children(recursive=True)):
        shown = " ".join(process.cmdline())
        assert secret.hex() not in shown
        assert "token-of-the-user" not in shown


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-c", HOROVODRUN, "-np", "2", "--gloo", "--verbose", sys.executable, str(WORKER)),
        (sys.executable, str(DRIVE), "2", "localhost:2", "horovodrun", "gloo", str(WORKER)),
    ],
    ids=["horovodrun", "hvdtrain run"],
)
def test_strangers_at_a_plain_job(command: tuple[str, ...], tmp_path: Path) -> None:
    with job(tmp_path, *command, "plain", str(tmp_path)) as launcher:
        secret = secret_of(int((tmp_path / "ready0").read_text()))
        assert len(secret) == 32
        shows_no_secret(launcher, secret)
        addresses = stranger.listening(launcher)
        assert {host for host, _ in addresses} == {"127.0.0.1"}
        assert len(addresses) == 1
        for address in addresses:
            refused_by_http_server(address, secret, tmp_path / "marker")
        (tmp_path / "go").touch()
        assert launcher.wait(HANG_S) == 0, (tmp_path / "output").read_text()[-3000:]
    assert [(tmp_path / f"sum{rank}").read_text() for rank in (0, 1)] == ["3.0", "3.0"]
    assert not (tmp_path / "marker").exists()
    said = (tmp_path / "output").read_text()
    assert secret.hex() not in said
    assert "Traceback" not in said


def test_strangers_at_an_elastic_job(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.sh"
    hosts.write_text(f"#!/bin/sh\n[ -e {tmp_path}/go ] && echo localhost:3 || echo localhost:2\n")
    hosts.chmod(0o755)
    options = ("--min-np", "2", "--max-np", "3", "--host-discovery-script", str(hosts))
    command = (sys.executable, "-c", HOROVODRUN, "-np", "2", *options, "--network-interfaces", "lo", "--gloo")
    with job(tmp_path, *command, sys.executable, str(WORKER), "elastic", str(tmp_path)) as launcher:
        secret = secret_of(int((tmp_path / "ready0").read_text()))
        shows_no_secret(launcher, secret)
        addresses = stranger.listening(launcher)
        assert {host for host, _ in addresses} == {"127.0.0.1"}
        at_launcher = [address for address, pid in addresses.items() if pid == launcher.pid]
        at_ranks = [address for address, pid in addresses.items() if pid != launcher.pid]
        assert (len(at_launcher), len(at_ranks)) == (1, 2)
        refused_by_http_server(at_launcher[0], secret, tmp_path / "marker")
        for address in at_ranks:
            refused_by_service(address, tmp_path / "marker")
        # The launcher tells rank 0 of the third slot; all three meet anew.
        (tmp_path / "go").touch()
        assert launcher.wait(HANG_S) == 0, (tmp_path / "output").read_text()[-3000:]
    assert [(tmp_path / f"sum{rank}").read_text() for rank in range(3)] == ["6.0"] * 3
    assert not (tmp_path / "marker").exists()
    assert secret.hex() not in (tmp_path / "output").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["use_gloo", "use_mpi"])
def test_functions_reach_ranks_and_results_come_back(wire: str, tmp_path: Path) -> None:
    program = tmp_path / "run.py"
    program.write_text(
        "import sys; sys.modules['tensorflow'] = None\n"
        "import horovod\n"
        "def function(x):\n"
        "    import horovod.torch as hvd\n"
        "    hvd.init()\n"
        "    return {'rank': hvd.rank(), 'x': x}\n"
        "if __name__ == '__main__':\n"
        f"    print(horovod.run(function, (7,), num_proc=2, {wire}=True))\n"
    )
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False, cwd=tmp_path,
        env=environment, timeout=HANG_S,
    )  # fmt: skip
    assert "[{'rank': 0, 'x': 7}, {'rank': 1, 'x': 7}]" in done.stdout, done.stdout + done.stderr


def test_what_the_launcher_remembers_is_no_pickle(tmp_path: Path) -> None:
    def cache() -> Cache:
        return Cache(str(tmp_path), 60, "parameters")

    found = ("interfaces", ("nodea", "nodeb"), frozenset())
    cache().put(found, {"eth1", "eth0"})
    assert cache().get(found) == ["eth0", "eth1"]
    for name in ("cache.bin", "cache.json"):
        (tmp_path / name).write_bytes(pickle.dumps(stranger.Touch(tmp_path / "marker")))
    assert cache().get(found) is None
    assert not (tmp_path / "marker").exists()


def test_a_rank_without_the_secret_says_so(tmp_path: Path) -> None:
    """As one that another Horovod's launcher started."""
    environment = {name: value for name, value in os.environ.items() if name != SECRET} | {
        "HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo", "HOROVOD_GLOO_IFACE": "lo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "HOROVOD_GLOO_RENDEZVOUS_PORT": "9",
        "HOROVOD_RANK": "0", "HOROVOD_SIZE": "2",
    }  # fmt: skip
    code = "import horovod.torch as hvd; hvd.init()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path,
        env=environment, timeout=HANG_S,
    )  # fmt: skip
    assert done.returncode != 0
    assert f"{SECRET} is not set" in done.stderr
