"""Real jobs under every launcher: they end well, or they end soon and say who failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from hvdtrain.core.errors import LaunchError
from hvdtrain.core.process.preemption import BEFORE_FIRST_UPDATE
from hvdtrain.launch.facts import find_facts
from hvdtrain.launch.run import run_command
from tests.jobs.runs import TINY

HERE = Path(__file__).parent
GLOO, MPI_BY_HOROVOD, MPI = ("horovodrun", "gloo"), ("horovodrun", "mpi"), ("mpirun", "mpi")
_PATHS = (str(HERE.parents[1]), str(HERE / "without_tensorflow"))
# The ranks that do not fail would go on for hours; 30 s to end them, the rest to start on a busy machine.
HANG_S = 90.0


def take_signals() -> None:
    """Called in a new process: tests that run in the background of a script inherit an ignored SIGINT."""
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)


class Job:
    """Two ranks of one of the programs in ranks/, started by drive.py in a folder of their own."""

    def __init__(self, launch: tuple[str, str], folder: Path, *program: str) -> None:
        script = str(HERE / "ranks" / program[0])
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "drive.py"), "2", "localhost:4", *launch, script, *program[1:]],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_PATHS), "OMP_NUM_THREADS": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=take_signals,  # noqa: PLW1509  (nothing of this process has threads yet)
        )

    def finish(self) -> tuple[int, str, str]:
        try:
            out, err = self.process.communicate(timeout=HANG_S)
        finally:
            self.process.kill()
        return self.process.returncode, out, err

    def ranks_alive(self) -> list[int]:
        pids = [int(text) for file in self.folder.glob("*.pid") if (text := file.read_text())]
        return [pid for pid in pids if psutil.pid_exists(pid)]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("launch", [GLOO, pytest.param(MPI_BY_HOROVOD, marks=SLOW), MPI])
def test_success(launch: tuple[str, str], tmp_path: Path) -> None:
    status, out, err = Job(launch, tmp_path, "allreduce.py").finish()
    assert status == 0, err
    total, host = [0.0, 3.0, 6.0, 9.0], os.uname().nodename
    expected = [f"RESULT {rank}/2 {launch[1]} {total} {host} {tmp_path}" for rank in (0, 1)]
    # Rank 0 speaks for the job, the others are marked.
    assert sorted(out.splitlines()) == sorted([expected[0], f"[rank 1] {expected[1]}"])


@pytest.mark.parametrize(
    ("launch", "fault", "failing"),
    [
        (GLOO, "raise", 1),
        (GLOO, "kill", 1),
        pytest.param(MPI_BY_HOROVOD, "raise-while-others-compute", 0, marks=SLOW),
        pytest.param(MPI_BY_HOROVOD, "kill", 1, marks=SLOW),
        pytest.param(MPI, "raise", 1, marks=SLOW),
        (MPI, "raise-while-others-compute", 0),
        (MPI, "kill", 0),
    ],
)
def test_failing_rank_ends_the_job(launch: tuple[str, str], fault: str, failing: int, tmp_path: Path) -> None:
    job = Job(launch, tmp_path, "fault.py", fault, str(failing), str(tmp_path))
    status, out, err = job.finish()
    failed_at = float(next(line for line in out.splitlines() if "FAILING" in line).split()[-1])
    print(f"{launch}, {fault}: ended {time.time() - failed_at:.1f} s after the failure")
    last = err.splitlines()[-1]
    assert last.startswith(f"hvdtrain: rank {failing} failed first"), err
    assert last.endswith("(killed by SIGKILL)" if fault == "kill" else "ValueError: planned failure")
    assert status == (128 + signal.SIGKILL if fault == "kill" else 1)
    assert job.ranks_alive() == []


@pytest.mark.parametrize(
    ("launch", "signum"),
    [
        (GLOO, signal.SIGINT),
        pytest.param(MPI_BY_HOROVOD, signal.SIGINT, marks=SLOW),
        (MPI, signal.SIGTERM),
    ],
)
def test_stopping_leaves_no_process(launch: tuple[str, str], signum: signal.Signals, tmp_path: Path) -> None:
    job = Job(launch, tmp_path, "fault.py", "none", "0", str(tmp_path))
    wait_for((tmp_path / "working").exists)
    children = psutil.Process(job.process.pid).children(recursive=True)
    job.process.send_signal(signum)
    status, _, err = job.finish()
    # Its ranks have said nothing yet, so that there is nothing to save.
    too_early = (85, f"hvdtrain: {BEFORE_FIRST_UPDATE}")
    stopped = (128 + signum, f"hvdtrain: stopped by {signum.name}")
    assert (status, err.splitlines()[-1]) == (too_early if signum == signal.SIGTERM else stopped)
    assert job.ranks_alive() == []
    assert [child for child in children if child.is_running()] == []


@pytest.mark.parametrize(
    ("launch", "whom"),
    [
        (GLOO, "driver"),
        pytest.param(GLOO, "supervisor", marks=SLOW),
        pytest.param(GLOO, "launcher", marks=SLOW),
        pytest.param(MPI_BY_HOROVOD, "driver", marks=SLOW),
        pytest.param(MPI_BY_HOROVOD, "launcher", marks=SLOW),
        pytest.param(MPI, "driver", marks=SLOW),
        pytest.param(MPI, "supervisor", marks=SLOW),
        (MPI, "launcher"),
        # Once is not enough: what horovodrun made of a signal differed from run to run.
        *[pytest.param(GLOO, "driver", marks=SLOW)] * 5,
    ],
)
def test_killing_any_of_those_above_the_ranks_ends_them(
    launch: tuple[str, str], whom: str, tmp_path: Path
) -> None:
    job = Job(launch, tmp_path, "fault.py", "none", "0", str(tmp_path))
    wait_for((tmp_path / "working").exists)
    (supervisor,) = psutil.Process(job.process.pid).children()
    (launcher,) = supervisor.children()
    below = [supervisor, *supervisor.children(recursive=True)]
    {"driver": psutil.Process(job.process.pid), "supervisor": supervisor, "launcher": launcher}[whom].kill()
    status, _, err = job.finish()
    if whom != "driver":
        assert (status, err.splitlines()[-1]) == (
            137,
            "hvdtrain: the launcher failed (killed by SIGKILL); see above",
        )
    wait_for(lambda: not any(process.is_running() for process in below))


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [["horovodrun", "--gloo"], ["horovodrun", "--mpi"], ["mpirun", "--allow-run-as-root"]]
)
def test_a_job_started_without_hvdtrain_run_ends_with_its_launcher_too(
    launcher: list[str], tmp_path: Path
) -> None:
    settings = [part for one in (*TINY, "max_steps=1000000") for part in ("--set", one)]
    job = ["-m", "hvdtrain.torch.job", *settings, "--output-dir", str(tmp_path / "out")]
    with (tmp_path / "log").open("w") as log:
        process = psutil.Popen(
            [*launcher, "-np", "2", sys.executable, *job], stdout=log, stderr=log, cwd=HERE.parents[1]
        )
        wait_for(lambda: "step 1/" in (tmp_path / "log").read_text())
        ranks = process.children(recursive=True)
        # horovodrun over MPI is a shell now, which mpirun does not notice the end of.
        for above in [process, *(p for p in ranks if p.name() == "mpirun")]:
            above.kill()
        process.wait()
        wait_for(lambda: not any(rank.is_running() for rank in ranks))


def test_missing_launcher_is_named() -> None:
    with pytest.raises(LaunchError, match="cannot start `/no/such/mpirun`"):
        run_command(["/no/such/mpirun"], os.environ)


def test_launcher_that_fails_by_itself_keeps_its_words(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command([sys.executable, "-c", "import sys; sys.exit('no slots')"], os.environ).status == 1
    assert capfd.readouterr().err == "no slots\nhvdtrain: the launcher failed (exit status 1); see above\n"


def test_standard_input_is_closed() -> None:
    assert (
        run_command([sys.executable, "-c", "import sys; sys.exit(len(sys.stdin.read()))"], os.environ).status
        == 0
    )


def test_orphans_are_ended_too(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"setsid sh -c 'echo $$ > {pid}; exec sleep 1000' & while [ ! -s {pid} ]; do sleep 0.1; done"
    assert run_command(["sh", "-c", script], os.environ).status == 0
    assert not psutil.pid_exists(int(pid.read_text()))


def test_facts_agree_with_horovod() -> None:
    script = "import horovod.torch as hvd; print(hvd.mpi_built(), hvd.gloo_built())"
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    facts = find_facts("torch")
    assert said.stdout.split() == [str(facts.horovod_mpi), str(facts.horovod_gloo)]
    absent = find_facts("mxnet")
    assert (absent.horovod_mpi, absent.horovod_gloo) == (False, False)


@pytest.mark.parametrize("ignored", ["SIGHUP", "SIGINT", "SIGTERM"])
def test_signals_that_the_parent_ignores_stay_ignored(ignored: str, tmp_path: Path) -> None:
    job = f"import pathlib, signal, time; print(signal.getsignal(signal.{ignored}).name, flush=True)\n"
    job += "while not pathlib.Path('sent').exists(): time.sleep(0.05)"
    script = f"""import os, sys
from hvdtrain.launch.run import run_command
sys.exit(run_command([sys.executable, "-c", {job!r}], os.environ).status)"""
    process = subprocess.Popen(
        [
            "sh",
            "-c",
            f"trap '' {ignored.removeprefix('SIG')}; exec \"$@\"",
            "sh",
            sys.executable,
            "-c",
            script,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": _PATHS[0]},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    # As of nohup, and of a shell for what it starts in the background.
    assert process.stdout.readline() == "SIG_IGN\n"
    process.send_signal(signal.Signals[ignored])
    (tmp_path / "sent").touch()
    assert process.wait(HANG_S) == 0


def test_a_second_request_to_stop_ends_a_job_that_does_not_heed_the_first() -> None:
    # A line with a rank's tag: from then on ranks are told, and here is none.
    job = "import time; print('[0]<stdout>:up', flush=True); time.sleep(1000)"
    script = f"""import os, sys
from hvdtrain.launch.run import run_command
sys.exit(run_command([sys.executable, "-c", {job!r}], os.environ).status)"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": _PATHS[0]},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    told = "hvdtrain: SIGUSR1: no rank is on this host: send it to one of them\n"
    assert process.stderr.readline() == told
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=HANG_S)[1] == "hvdtrain: stopped by SIGTERM\n"
    assert process.returncode == 143
