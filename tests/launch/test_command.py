"""`hvdtrain run` as typed: options, refusals and the printed command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hvdtrain.core.errors import HvdtrainError, LaunchError, SpecError
from hvdtrain.launch.command import run
from tests.jobs.runs import TINY

app = typer.Typer()
app.command()(run)
SHORT = tuple(
    part for override in (*TINY, "max_steps=2", "schedule.warmup_steps=1") for part in ("--set", override)
)


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bert", "--framework", "torch", *arguments])
    if isinstance(result.exception, HvdtrainError):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    "ranks", [("-np", "3"), ("-np=3",), ("--num-proc", "3"), ("-np", "3", "-H", "localhost:2,127.0.0.1:4")]
)
def test_dry_run_prints_a_command_for_exactly_the_ranks(ranks: tuple[str, ...]) -> None:
    status, out, err = invoke(
        *ranks, "--dry-run", "--launcher", "horovodrun", "--wire", "gloo", "--set", "seed=4"
    )
    assert status == 0
    words = shlex.split(out)
    assert words[words.index("-np") + 1] == "3"
    expected = "localhost:2,127.0.0.1:1" if "-H" in ranks else "localhost:3"
    assert words[words.index("-H") + 1] == expected
    assert words[-6:] == ["-m", "hvdtrain.torch.job", "--spec", "bert", "--set", "seed=4"]
    assert err == f"hvdtrain: 3 ranks on {expected}, gloo by horovodrun (as asked for)\n"


def test_dry_run_output_runs_as_printed(tmp_path: Path) -> None:
    status, out, _ = invoke("-np", "2", *SHORT, "--output-dir", str(tmp_path / "out put"), "--dry-run")
    assert status == 0
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["sh", "-c", out], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out put" / "metrics.jsonl").exists()


def test_an_elastic_job_keeps_the_global_batch_of_its_start() -> None:
    options = ("--min-np", "1", "--snapshot-steps", "7", "-H", "localhost:1,127.0.0.1:4")
    _, out, err = invoke("-np", "2", *options, "--dry-run")
    assert err.startswith("hvdtrain: 2 ranks on localhost:1,127.0.0.1:1,")
    words = shlex.split(out)
    # The packaged spec has 8 rows a rank.
    assert "batch.global_batch_size=16" in words
    assert words[-2:] == ["--snapshot-steps", "7"]
    _, again, _ = invoke("-np", "2", *options, "--dry-run")
    name = words[words.index("--snapshots") + 1]
    assert len(name) == 16
    assert name not in again


@pytest.mark.parametrize("option", ["--stall-timeout", "--heartbeat-timeout", "--elastic-timeout"])
@pytest.mark.parametrize("nonsense", ["nan", "-1", "soon", ""])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(option: str, nonsense: str) -> None:
    status, _, err = invoke("--min-np", "1", option, nonsense, "--dry-run")
    assert status == 2
    assert option in err


def test_what_the_environment_says_of_elastic_jobs_hinders_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_ELASTIC_TIMEOUT", "60")
    assert invoke("-np", "2", "--dry-run")[0] == 0


def test_what_is_about_the_output_directory_reaches_the_ranks() -> None:
    resumed = ("--resume", "out/checkpoint-4", "--allow-change", "max_steps", "--allow-change", "seed")
    _, out, _ = invoke("-np", "2", *resumed, "--overwrite", "--output-dir", "else", "--dry-run")
    assert out.strip().endswith(f"--output-dir else --overwrite {' '.join(resumed)}")


def test_hostfile(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("192.0.2.1 slots=4\n192.0.2.2 slots=4\n")
    _, out, err = invoke("-np", "6", "--hostfile", str(file), "--network-interface", "eth7", "--dry-run")
    words = shlex.split(out)
    assert words[words.index("-H") + 1] == "192.0.2.1:4,192.0.2.2:2"
    assert words[words.index("--network-interfaces") + 1] == "eth7"
    assert "Gloo is faster" in err


@pytest.mark.parametrize(
    ("arguments", "kind", "complaint"),
    [
        (("-np", "2", "--set", "sead=1"), SpecError, "did you mean 'seed'"),
        (("-np", "5", "-H", "a:2,b:2"), LaunchError, "4 slots"),
        (("-np", "0"), LaunchError, "at least one rank"),
        ((), LaunchError, "-np: give the number of ranks"),
        (("-np", "2", "--min-np", "1", "--max-restarts", "1"), LaunchError, "--reset-limit in its place"),
        *[
            (("-np", "2", option, *values), LaunchError, f"{option} is for elastic jobs: give --min-np")
            for option, *values in (
                ("--reset-limit", "1"),
                ("--blacklist-cooldown-range", "1", "2"),
                # Whatever they are by default.
                ("--snapshot-steps", "20"),
                ("--heartbeat-timeout", "30"),
                ("--stall-timeout", "1800"),
            )
        ],
        (("-np", "2", "--allow-change", "seed"), LaunchError, "--allow-change: .*give --resume"),
        (("--host-discovery-script", "x", "-H", "a:2"), LaunchError, "not both"),
        (("-np", "2", "--min-np", "3"), LaunchError, "-np 2: is not between"),
        (("--min-np", "2"), LaunchError, "give it, or -np"),
        (
            ("--min-np", "3", "--max-np", "3", "--set", "batch.global_batch_size=16"),
            LaunchError,
            "the nearest that will do: 2",
        ),
        (("-np", "2", "-H", "a:2", "--hostfile", "x"), LaunchError, "not both"),
        (("-np", "2", "--launcher", "mpirun", "--wire", "gloo"), LaunchError, "Gloo needs horovodrun"),
    ],
)
def test_refusals_start_nothing(arguments: tuple[str, ...], kind: type[Exception], complaint: str) -> None:
    with pytest.raises(kind, match=complaint):
        invoke(*arguments)


# test_run.py has failing ranks that start sooner.
@pytest.mark.slow
def test_status_of_a_failing_job(tmp_path: Path) -> None:
    # Only rank 0 finds out that it is another run's.
    (tmp_path / "metrics.jsonl").touch()
    arguments = [
        "run",
        "bert",
        "--framework",
        "torch",
        "-np",
        "2",
        *SHORT,
        "--output-dir",
        str(tmp_path),
        "--resume",
        "auto",
    ]
    script = "import typer; from hvdtrain.launch.command import run; typer.run(run)"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("hvdtrain: rank 0 failed first (exit status 1)")
