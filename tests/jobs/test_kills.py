"""A job that is killed again and again, and goes on with `--resume auto`, as if nothing had been.

`make test-faults` runs all of it: more than 50 rounds, half of them inside of a save.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from hvdtrain.core.checkpoints.finding import check_whole, checkpoints_in, step_of
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.output_dir import PLAN_FILE
from tests.jobs.killed import RANKS
from tests.jobs.preempted import wait_for
from tests.jobs.runs import ROOT, TINY, small_corpus, train_all
from tests.jobs.test_preemption import ENV, check_unbroken
from tests.own import jobs as own_jobs

# float32 with dropout; some 15 updates an epoch.
COMMON = [
    "batch={per_device_train_batch_size: 2, global_batch_size: 4}",
    "schedule.type=constant_with_warmup",
    "checkpointing={save_steps: 3, save_total_limit: 3}",
    "evaluation.eval_steps=null",
    "logging.progress_bar=false",
]
BERT = [*TINY, *COMMON, "model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1"]
# Of ranks that start in a third of the time.
OWN = own_jobs.job("Dropped", "classes_alone", "cross_entropy", 0, "model.dtype=float32", *COMMON)
# Ranks go on for a while after their launcher.
WHO = ("0", "1", "all", "1", "launcher")
SLOW = pytest.mark.slow


def run(root: Path, framework: str, plan: dict[str, Any], spec: str, sets: list[str]) -> int:
    """Train into root/out, on from the newest checkpoint; returns the status when no rank is left."""
    (root / "plan.json").write_text(json.dumps(plan))
    for rank in range(RANKS):
        (root / f"pid.{rank}").unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "tests.jobs.killed", str(root), spec, "--framework", framework),
        *("-np", str(RANKS), "--output-dir", str(root / "out"), "--resume", "auto"),
        *(part for one in sets for part in ("--set", one)),
    ]
    with (root / "output").open("w+") as output:
        # Not a pipe: ranks may hold it for a while after their launcher.
        status = subprocess.call(command, env=ENV, cwd=ROOT, stdout=output, stderr=output, timeout=600)
    wait_for(lambda: not any(is_running(root / f"pid.{rank}") for rank in range(RANKS)))
    return status


def is_running(pid: Path) -> bool:
    try:
        return psutil.Process(int(pid.read_text())).status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, psutil.NoSuchProcess):
        return False


def output(root: Path) -> str:
    return (root / "output").read_text()[-3000:]


def newest_whole(out: Path) -> int:
    """The step of the newest checkpoint of which every byte is right; 0 without one."""
    for place in reversed(checkpoints_in(out)):
        try:
            check_whole(place)
            return step_of(place)
        except CheckpointError:
            pass
    return 0


def samples(root: Path, rank: int) -> list[tuple[int, list[int]]]:
    """What a rank has trained on: the number of each update that was applied, and its samples."""
    file = root / f"samples.{rank}"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize(
    ("framework", "model", "rounds", "updates"),
    [
        ("torch", "own", 5, 80),
        pytest.param("torch", "bert", 25, 1000, marks=SLOW),
        pytest.param("tensorflow", "bert", 25, 1000, marks=SLOW),
    ],
)
def test_killed_at_any_moment_nothing_is_lost_and_nothing_is_done_twice(
    framework: str, model: str, rounds: int, updates: int, tmp_path: Path
) -> None:
    root, draw = tmp_path / "killed", random.Random(rounds)
    root.mkdir()
    sets = BERT + small_corpus(tmp_path / "corpus") if model == "bert" else OWN
    spec = "bert" if model == "bert" else str(own_jobs.base_spec(tmp_path))
    job = spec, [*sets, f"max_steps={updates}"]
    whole = train_all(tmp_path, framework, RANKS, {"whole": job[1]}, spec=spec)["whole"]
    for number in range(rounds):
        place = newest_whole(root / "out")
        taken = [len(samples(root, rank)) for rank in range(RANKS)]
        # Each in turn, and each both inside of a save and elsewhere.
        plan: dict[str, Any] = {"who": WHO[number % len(WHO)]}
        if number % 2 == 0:
            plan |= {"event": draw.randint(1, 100)}
        else:
            plan |= {"update": place + draw.randint(1, 8), "delay": 0.03 * draw.random()}
        assert run(root, framework, plan, *job) != 0, (plan, output(root))
        for rank in range(RANKS):
            # It goes on behind the newest checkpoint that was there: what is on disk is not trained again.
            first = samples(root, rank)[taken[rank] : taken[rank] + 1]
            assert [update for update, _ in first] in ([place + 1], []), (plan, output(root))
    assert run(root, framework, {}, *job) == 0, output(root)
    check_unbroken(whole, root / "out")
    # Of an update that was taken again, what the last attempt used counts.
    taken_on = [dict(samples(root, rank)) for rank in range(RANKS)]
    assert [sorted(each) for each in taken_on] == [[*range(1, updates + 1)]] * RANKS
    order = [index for update in range(1, updates + 1) for rank in taken_on for index in rank[update]]
    count = json.loads((root / "out" / PLAN_FILE).read_text())["train_samples"]
    assert len(order) >= 5 * count
    for start in range(0, len(order) - count + 1, count):
        assert sorted(order[start : start + count]) == [*range(count)]
