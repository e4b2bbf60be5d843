"""A job that is told to stop, or crashes, goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.checkpoints.finding import newest_whole
from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.run.metrics import read_metrics
from tests.jobs.runs import ROOT, train_all
from tests.launch.cluster import emulated_hosts
from tests.own import jobs as own_jobs

SETTINGS = own_jobs.job(
    "Fixed",
    "classes",
    "cross_entropy",
    12,
    "batch={per_device_train_batch_size: 4, global_batch_size: 16}",
    "evaluation.eval_steps=null",
)
BY_GLOO = ("--launcher", "horovodrun", "--wire", "gloo")
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
Done = subprocess.CompletedProcess[str]


def run(
    root: Path, framework: str, script: dict[int, str], *options: str, sets: Sequence[str] = SETTINGS
) -> Done:
    """`hvdtrain run` on two ranks, into root/out, with what the script says happening to it."""
    command = scripted(root, framework, script, str(own_jobs.base_spec(root)), sets, *options)
    return subprocess.run(
        command, env=ENV, cwd=root, capture_output=True, text=True, timeout=600, check=False
    )


def scripted(
    root: Path, framework: str, script: dict[int, str], spec: str, sets: Sequence[str], *options: str
) -> list[str]:
    (root / "script.json").write_text(json.dumps(script))
    chosen = [part for one in sets for part in ("--set", one)]
    return [
        *(sys.executable, "-m", "tests.jobs.preempted", str(root)),
        *(spec, "--framework", framework, "-np", "2", "--output-dir", str(root / "out"), *chosen, *options),
    ]


def newest(out: Path) -> Path | None:
    found = newest_whole(out, print)
    return found[0] if found else None


def preempted(root: Path, done: Done) -> Path:
    """The checkpoint that a job has left that was told to stop; it is whole, and the last line names it."""
    assert done.returncode == 85, done.stderr[-3000:]
    found = newest(root / "out")
    assert found is not None
    step = found.name.partition("-")[2]
    last = done.stderr.splitlines()[-1]
    assert last == f"hvdtrain: preempted at update {step}: go on with --resume {found}"
    assert not (root / "out" / "model").exists()
    # It is said once.
    assert "preempted" not in done.stdout
    return found


def check_unbroken(whole: Path, run: Path) -> None:
    expected, found = ({x["step"]: x["loss"] for x in read_metrics(out)[0]} for out in (whole, run))
    assert found == expected
    ours, theirs = load_model(whole / "model"), load_model(run / "model")
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)


def unbroken(root: Path, framework: str, sets: list[str] = SETTINGS) -> Path:
    root.mkdir(exist_ok=True)
    return train_all(root, framework, 2, {"whole": sets}, spec=str(own_jobs.base_spec(root)))["whole"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unbroken(tmp_path_factory.mktemp("whole"), "torch")


def test_preempted_then_killed_it_ends_as_if_nothing_had_been(whole: Path, tmp_path: Path) -> None:
    place = preempted(tmp_path, run(tmp_path, "torch", {3: "launcher"}))
    restarting, sets = (
        ("--resume", str(place), "--max-restarts", "2"),
        [*SETTINGS, "checkpointing.save_steps=7"],
    )
    done = run(tmp_path, "torch", {9: "kill"}, *restarting, sets=sets)
    assert done.returncode == 0, done.stderr[-3000:]
    check_unbroken(whole, tmp_path / "out")
    assert f"--resume auto: going on from {tmp_path / 'out' / 'checkpoint-7'}\n" in done.stdout
    told = "rank 1 failed first (killed by SIGKILL); restart 1 on localhost:2 went on from update 7, after"
    assert re.fullmatch(rf"{re.escape(f'hvdtrain: {told}')} \d+ s", done.stderr.splitlines()[-1])
    assert "\x16" not in done.stdout + done.stderr
    (line,) = map(json.loads, (tmp_path / "out" / "restarts.jsonl").read_text().splitlines())
    assert (line["number"], line["status"], line["resume"], line["step"]) == (1, 137, "auto", 7)
    assert (line["hosts"], line["ranks"]) == ("localhost:2", 2)
    assert line["recovery_s"] > 0
    assert line["reason"] == "rank 1 failed first (killed by SIGKILL)"


def test_an_elastic_job_goes_on_with_the_ranks_that_are_left(whole: Path, tmp_path: Path) -> None:
    hosts = ("-H", "localhost:1,127.0.0.1:1", "--min-np", "1", "--snapshot-steps", "4")
    done = run(tmp_path, "torch", {7: "kill"}, *hosts)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = map(json.loads, (tmp_path / "out" / "restarts.jsonl").read_text().splitlines())
    assert (line["ranks"], line["hosts"], line["step"]) == (1, "localhost:1", 4)
    assert "127.0.0.1 is on the blacklist" in done.stderr
    ours, theirs = ({x["step"]: x["loss"] for x in read_metrics(out)[0]} for out in (whole, tmp_path / "out"))
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_one_rank_that_is_told_takes_the_others_along(tmp_path: Path) -> None:
    preempted(tmp_path, run(tmp_path, "tensorflow", {3: "rank"}))


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
@pytest.mark.parametrize(("whom", "more"), [("rank", BY_GLOO), ("launcher", BY_GLOO), ("launcher", ())])
def test_in_either_framework_by_either_launcher(
    framework: str, whom: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    expected = unbroken(tmp_path / "whole", framework)
    place = preempted(tmp_path, run(tmp_path, framework, {4: whom}, *more))
    done = run(tmp_path, framework, {}, "--resume", str(place), *more)
    assert done.returncode == 0, done.stderr[-3000:]
    check_unbroken(expected, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("hosts", "launcher"), [("nodea:1,nodeb:1", "horovodrun"), ("nodeb:2", "mpirun")])
def test_ranks_on_other_hosts_are_told_too(hosts: str, launcher: str, tmp_path: Path) -> None:
    options = ("-H", hosts, "--launcher", launcher, "--network-interface", "eth0")
    spec = str(own_jobs.base_spec(tmp_path))
    command = scripted(tmp_path, "torch", {3: "launcher"}, spec, SETTINGS, *options)
    with emulated_hosts(2) as cluster:
        status, output = cluster.run("nodea", command, cwd=tmp_path, env=ENV, timeout_s=300)
    assert status == 85, output[-3000:]
    found = newest(tmp_path / "out")
    assert f"--resume {found}" in output.splitlines()[-1]


@pytest.mark.slow
def test_ten_times_in_a_row(tmp_path: Path) -> None:
    sets = [*SETTINGS, "max_steps=24"]
    whole = unbroken(tmp_path / "whole", "torch", sets)
    step, resume = 0, []
    for time in range(10):
        # In the next update one is told, and all see it in the one after that.
        done = run(tmp_path, "torch", {step + 1: ("rank", "launcher")[time % 2]}, *resume, sets=sets)
        place = preempted(tmp_path, done)
        step, resume = step + 2, ["--resume", str(place)]
        assert place.name == f"checkpoint-{step}"
    assert run(tmp_path, "torch", {}, *resume, sets=sets).returncode == 0
    check_unbroken(whole, tmp_path / "out")


@pytest.mark.slow
def test_a_second_signal_ends_the_rank_at_once(tmp_path: Path) -> None:
    done = run(tmp_path, "torch", {3: "twice"}, "--max-restarts", "2")
    assert done.returncode == 143, done.stderr[-3000:]
    assert "ended by a second SIGTERM" in done.stderr
    assert newest(tmp_path / "out") is None


@pytest.mark.slow
def test_what_fails_twice_in_the_same_way_is_not_restarted_again(tmp_path: Path) -> None:
    done = run(tmp_path, "torch", {3: "raise"}, "--max-restarts", "5")
    assert done.returncode == 1
    assert done.stderr.count("RuntimeError: cursed") >= 2
    assert done.stderr.count("not restarted again") == 1
    assert len((tmp_path / "out" / "restarts.jsonl").read_text().splitlines()) == 1
