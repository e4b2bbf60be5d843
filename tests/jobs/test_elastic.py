"""Elastic jobs end as if nothing had been, whatever becomes of their hosts on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from hvdtrain.core.checkpoints.finding import check_whole, checkpoints_in
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.launch.commands import GUARD
from tests.jobs.runs import TINY, launch, small_corpus, train_all
from tests.jobs.test_preemption import ENV, scripted
from tests.launch.cluster import Cluster, emulated_hosts

PATIENCE_S = 240.0
# Three ranks, two and one share a global batch of 12.
SETTINGS = [
    *TINY,
    "model.hidden_dropout_prob=0.0",
    "model.attention_probs_dropout_prob=0.0",
    "batch={per_device_train_batch_size: 2, global_batch_size: 12}",
    "max_steps=160",
    "logging.progress_bar=false",
]
COOLDOWN = ("--blacklist-cooldown-range", "1", "2", "--heartbeat-timeout", "8")
Step = Callable[[Cluster], None]


def wait_until(condition: Callable[[], bool], what: str, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert job.poll() is None, f"the job has ended before {what}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)


def restarts(out: Path) -> list[dict[str, Any]]:
    file = out / "restarts.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def goes_on_with(ranks: int, after: int, out: Path) -> Callable[[], bool]:
    """Whether a restart after so many has come to updates on so many ranks."""
    return lambda: any(r["recovery_s"] is not None and r["ranks"] == ranks for r in restarts(out)[after:])


def start(cluster: Cluster, root: Path, framework: str, *options: str) -> subprocess.Popen[str]:
    sets = [*SETTINGS, *small_corpus(root / "corpus")]
    elastic = ("--min-np", "1", "--max-np", "3", "--snapshot-steps", "5", "--network-interface", "eth0")
    command = scripted(root, framework, {"pace": 0.25}, "bert", sets, *elastic, *COOLDOWN, *options)
    # Another -np than that of `scripted` counts.
    log = (root / "log").open("w")
    return subprocess.Popen(
        cluster.inside("nodea", command, root),
        env=ENV,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check_ends_as(expected: Path, root: Path, job: subprocess.Popen[str]) -> None:
    try:
        status = job.wait(PATIENCE_S)
    finally:
        job.kill()
    assert status == 0, (root / "log").read_text()[-5000:]
    whole, found = ({x["step"]: x["loss"] for x in read_metrics(out)[0]} for out in (expected, root / "out"))
    assert list(found) == list(whole)
    assert found == pytest.approx(whole, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_host_is_lost_in_four_ways_and_comes_back(framework: str, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", undisturbed(tmp_path, framework)
    ways: list[tuple[str, str, Step, Step]] = [
        ("killed", "nodec", lambda c: c.signal("nodec", signal.SIGKILL), lambda c: None),
        ("cut off", "nodec", lambda c: c.cut("nodec"), lambda c: c.cut("nodec", back=True)),
        # Rank 0's neighbour.
        (
            "frozen",
            "nodeb",
            lambda c: c.signal("nodeb", signal.SIGSTOP, ssh_server=True),
            lambda c: c.signal("nodeb", signal.SIGCONT, ssh_server=True),
        ),
        ("told to stop", "nodec", lambda c: tell_rank(c, "nodec"), lambda c: None),
    ]
    with emulated_hosts(3) as cluster:
        job = start(cluster, tmp_path, framework, "-np", "3", "-H", "nodea:1,nodeb:1,nodec:1")
        wait_until(lambda: len(losses(out)) >= 8, "the first updates", job)
        for what, name, lose, bring_back in ways:
            before = len(restarts(out))
            lose(cluster)
            wait_until(goes_on_with(2, before, out), f"two ranks after one was {what}", job)
            (note,) = [r for r in restarts(out)[before:] if r["ranks"] == 2]
            assert name not in note["hosts"]
            bring_back(cluster)
            wait_until(goes_on_with(3, before, out), f"three ranks after one was {what}", job)
        check_ends_as(whole, tmp_path, job)


@pytest.mark.slow
def test_over_mpi_the_loss_of_a_host_or_of_a_link_between_two_is_noticed(tmp_path: Path) -> None:
    out, whole = tmp_path / "out", undisturbed(tmp_path, "torch")
    mpi = ("--wire", "mpi", "--launcher", "mpirun", "--stall-timeout", "20")
    with emulated_hosts(3) as cluster:
        job = start(cluster, tmp_path, "torch", "-np", "2", "-H", "nodeb:1,nodec:1", *mpi)
        wait_until(lambda: len(losses(out)) >= 8, "the first updates", job)
        # Both ranks are still heard on the third host.
        cluster.sever("nodec", "nodeb")
        wait_until(lambda: len(restarts(out)) == 1, "the end of ranks that wait for each other", job)
        cluster.sever("nodec", "nodeb", back=True)
        assert restarts(out)[0]["reason"] == "no rank has made progress for 20 s (--stall-timeout)"
        wait_until(goes_on_with(2, 0, out), "both ranks again", job)
        before = len(restarts(out))
        cluster.cut("nodec")
        wait_until(goes_on_with(1, before, out), "the rank that is left", job)
        assert "nothing was heard from nodec" in restarts(out)[before]["reason"]
        check_ends_as(whole, tmp_path, job)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_it_grows_with_the_hosts_and_outlives_rank_0s(framework: str, tmp_path: Path) -> None:
    out, whole, hosts = tmp_path / "out", undisturbed(tmp_path, framework), tmp_path / "hosts"
    hosts.write_text("nodeb\n")
    with emulated_hosts(3) as cluster:
        # The launcher's own host is none of its ranks'.
        job = start(cluster, tmp_path, framework, "--host-discovery-script", f"cat {hosts}", "-np", "1")
        wait_until(lambda: len(losses(out)) >= 8, "the first updates", job)
        hosts.write_text("nodec:1\nnodeb:1\n")
        # Rank 0 stays where it is.
        wait_until(goes_on_with(2, 0, out), "two ranks", job)
        hosts.write_text("nodec:1\nnodeb:1\nnodea:1\n")
        wait_until(goes_on_with(3, 1, out), "three ranks", job)
        assert restarts(out)[-1]["hosts"].startswith("nodeb:1,")
        before, reached = len(restarts(out)), len(losses(out))
        wait_until(lambda: len(losses(out)) > reached + 6, "a snapshot on three ranks", job)
        cluster.signal("nodeb", signal.SIGSTOP, ssh_server=True)
        wait_until(goes_on_with(2, before, out), "two ranks without that of rank 0", job)
        assert "nodeb" not in restarts(out)[before]["hosts"]
        # From the neighbour's snapshot, of which nothing older would do.
        assert restarts(out)[before]["step"] >= reached
        check_ends_as(whole, tmp_path, job)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_rank_0_and_its_neighbour_write_the_same(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [
        *TINY,
        "batch={per_device_train_batch_size: 2, global_batch_size: 12}",
        "max_steps=9",
        *small_corpus(tmp_path / "corpus"),
    ]
    # What only some ranks hold, in each way.
    scenarios = {
        "plain": [],
        **{f"zero{stage}": [f"zero_stage={stage}"] for stage in (1, 2, 3)},
        "residuals": ["compression={type: powersgd, start_powerSGD_iter: 2}"],
        "local": ["compression={type: local_sgd, sync_every: 4}"],
    }
    listing = tmp_path / "scenarios.json"
    listing.write_text(json.dumps([{"name": n, "set": [*plain, *sets]} for n, sets in scenarios.items()]))
    monkeypatch.setenv("HVDTRAIN_SNAPSHOT_DIR", str(tmp_path))
    done = launch(2, [str(Path(__file__).with_name("snapshotting.py")), framework, str(listing)])
    assert done.returncode == 0, done.stdout[-5000:]
    for name in scenarios:
        memory = tmp_path / f"hvdtrain-snapshots-{os.getuid()}"
        mine, other = (memory / name / host for host in ("host0", "host1"))
        assert [path.name for path in checkpoints_in(mine)] == ["checkpoint-4", "checkpoint-8"]
        for place in checkpoints_in(mine):
            ours, theirs = (check_whole(folder / place.name) for folder in (mine, other))
            assert ours is not None
            assert theirs is not None
            assert ours.files == theirs.files, name


def tell_rank(cluster: Cluster, name: str) -> None:
    """What a scheduler does that takes back a host."""
    processes = [psutil.Process(pid) for pid in cluster.processes(name)]
    (rank, *_) = (process for process in processes if tuple(process.cmdline()[1:3]) == GUARD)
    rank.terminate()


def undisturbed(root: Path, framework: str) -> Path:
    sets = [*SETTINGS, *small_corpus(root / "corpus")]
    return train_all(root / "whole", framework, 3, {"whole": sets})["whole"]


def losses(out: Path) -> list[dict[str, Any]]:
    return read_metrics(out)[0] if (out / "metrics.jsonl").exists() else []
