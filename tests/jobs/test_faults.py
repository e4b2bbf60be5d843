"""What goes wrong ends the whole job with one clear message and nothing half-written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.runs import TINY, launch, small_corpus, train_all

# Who fails and what is said is the core's doing: one framework shows it in the quick suite.
SLOW = pytest.mark.slow
FAULTY = "tests.jobs.faulty"
# A launcher has 30 s to end a job in which one rank failed; start-up comes on top.
TIMEOUT = 300.0


def fail(
    framework: str, fault: str, wire: str, output_dir: Path, *overrides: str
) -> subprocess.CompletedProcess[str]:
    return launch(2, ["-m", FAULTY, framework, fault, str(output_dir), *overrides], wire, TIMEOUT)


@pytest.mark.parametrize(
    ("framework", "wire"), [("torch", "gloo"), pytest.param("tensorflow", "mpi", marks=SLOW)]
)
def test_a_raising_rank_ends_the_job_with_its_error(framework: str, wire: str, tmp_path: Path) -> None:
    done = fail(framework, "raise", wire, tmp_path / "out")
    assert done.returncode != 0
    assert "[rank 1]" in done.stdout
    assert "RuntimeError: the third update is cursed" in done.stdout
    assert not (tmp_path / "out" / "model").exists()


# What ends the others is the launcher, as tests/launch/test_run.py tries with ranks that start sooner.
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize(("framework", "wire"), [("torch", "mpi"), ("tensorflow", "gloo")])
def test_a_killed_rank_ends_the_job(framework: str, wire: str, stage: int, tmp_path: Path) -> None:
    """With stage 3 the others wait in a gather of the rank's weights."""
    done = fail(framework, "kill", wire, tmp_path / "out", f"zero_stage={stage}")
    assert done.returncode != 0
    # mpirun names the signal; horovodrun says 128 + 9, the status of the rank's shell.
    assert "signal 9" in done.stdout or "code 137" in done.stdout, done.stdout[-2000:]
    assert not (tmp_path / "out" / "model").exists()


def test_a_rank_killed_in_a_sharded_save_leaves_the_checkpoints_before_it(tmp_path: Path) -> None:
    sets = ["zero_stage=1", "checkpointing.save_steps=1"]
    done = fail("torch", "killed save", "mpirun", tmp_path / "out", *sets)
    assert "signal 9" in done.stdout, done.stdout[-2000:]
    # A name that begins with a dot is of what is not whole.
    assert checkpoints(tmp_path / "out") == {"checkpoint-1", "checkpoint-2"}
    last, fewer = tmp_path / "out" / "checkpoint-2", [*TINY, *sets, "max_steps=4"]
    allowed = ["max_steps", "batch.global_batch_size"]
    train_all(tmp_path, "torch", 1, {"out": fewer}, {"out": last}, allow=allowed)
    assert checkpoints(tmp_path / "out") == {f"checkpoint-{step}" for step in (1, 2, 3, 4)}
    assert not [*(tmp_path / "out").glob(".*")]


def test_a_directory_with_another_run_ends_every_rank_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    settings = [part for each in [*TINY, *small_corpus(tmp_path)] for part in ("--set", each)]
    output = ["--output-dir", str(tmp_path / "out")]
    done = launch(2, ["-m", "hvdtrain.torch.job", *settings, *output], timeout=TIMEOUT)
    assert done.returncode != 0
    told = [line for line in done.stdout.splitlines() if "error" in line.lower()]
    assert "[rank 0] error: --output-dir" in told[0]
    assert "holds another run (metrics.jsonl is there)" in told[0]
    assert not any("Traceback" in line for line in told)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"metrics.jsonl"}
    # The launcher sees it before there is a rank; so it does where two specs share the default directory.
    run = ["-m", "hvdtrain.cli", "run", "bert", "--framework", "torch", "-np", "2", *settings]
    done = run_python(*run, *output)
    assert done.stderr.startswith(f"error: --output-dir {tmp_path / 'out'}: holds another run")
    assert done.stderr.count("\n") == 1


def checkpoints(run: Path) -> set[str]:
    return {path.name for path in run.glob("checkpoint-*")}


# tests/core/test_checkpoint.py fills the disk of one process.
@pytest.mark.slow
@pytest.mark.parametrize("sets", [[], ["checkpointing.save_steps=3"]])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, sets: list[str]) -> None:
    """At the end of a run, or while it goes on and writes a checkpoint in the background."""
    done = fail("torch", "disk", "gloo", tmp_path / "out", *sets)
    assert done.returncode != 0
    assert "could not be saved" in done.stdout
    assert "File too large" in done.stdout
    # horovodrun adds a traceback of its own; a rank must not.
    assert "<stderr>:Traceback" not in done.stdout
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"metrics.jsonl", "spec.json", "plan.json"}


# The quick one of a gradient that stays infinite is the next.
@pytest.mark.slow
def test_nan_on_one_rank_stops_every_rank(tmp_path: Path) -> None:
    done = fail("torch", "nan", "gloo", tmp_path / "out", "max_skipped_updates=20")
    assert done.returncode != 0
    assert "20 updates in a row" in done.stdout
    assert "optimizer.learning_rate" in done.stdout


# PyTorch rounds the decoder's bias with its product; in TensorFlow the norm before it overflows first.
@pytest.mark.parametrize(
    ("framework", "weight"),
    [
        ("torch", "cls.predictions.bias"),
        pytest.param("tensorflow", "cls.predictions.transform.LayerNorm.bias", marks=SLOW),
    ],
)
def test_what_float16_cannot_hold_is_named_on_every_rank(framework: str, weight: str, tmp_path: Path) -> None:
    done = fail(framework, "overflow", "mpirun", tmp_path / "out", "mixed_precision=fp16")
    assert done.returncode != 0
    told = (
        "error: the update after step 2 is not finite at a loss scale of 1 either, and loss_scale.minimum "
        f"is 1: the first that is not finite is the gradient of {weight}."
    )
    assert f"[rank 0] {told}" in done.stdout, done.stdout[-3000:]
    assert "mixed_precision: bf16" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["bert", "--set", "optimizer.learning_rat=1"], "did you mean 'learning_rate'?"),
        (["no-such.yaml"], "no such file"),
        (["bert", "--set", "data.corpus=null", "--set", "data.files=[/no/such/*.txt]"], "/no/such/*.txt"),
        (["bert", "--set", "data.tokenizer_file=/no/such.json"], "/no/such.json"),
        (["bert", "-np", "3", "--set", "batch.global_batch_size=16"], "16 is not a multiple of 3 ranks"),
        (["bert", "--resume", "/no/such/checkpoint-2"], "--resume /no/such/checkpoint-2: not a whole"),
        (["bert", "--resume", str(Path(__file__).parent)], "state.json: No such file"),
        (["bert", "-H", "no-such-host.invalid:1,localhost:1"], "host no-such-host.invalid: its name has no"),
        (["bert", "--network-interface", "eth77"], "this machine has no 'eth77'; it has"),
        (["bert", "--output-dir", "/dev/null/out"], "/dev/null is not a directory"),
        (["bert", "--output-dir", "/proc/1/out"], "/proc/1/out: "),
        (["bert", "--output-dir=~nobody-here/out"], "the user nobody-here has no home directory"),
        (
            ["bert", "--resume=~nobody-here/out"],
            "--resume ~nobody-here/out: the user nobody-here has no home",
        ),
        (["~nobody-here/bert.yaml"], "spec ~nobody-here/bert.yaml: the user nobody-here has no"),
        (
            ["bert", "--hostfile=~nobody-here/hosts"],
            "hostfile ~nobody-here/hosts: the user nobody-here has no",
        ),
        (
            ["bert", "--set", "data.corpus=null", "--set", "data.files=[~nobody-here/x.txt]"],
            "data.files: ~nobody-here/x.txt: the user nobody-here has no",
        ),
        (
            ["bert", "--set", "data.tokenizer_file=~nobody-here/x"],
            "data.tokenizer_file: ~nobody-here/x: the user",
        ),
        (["bert", "--set", "data.cache_dir=~nobody-here/x"], "data.cache_dir: ~nobody-here/x: the user"),
    ],
)
def test_bad_input_gives_one_message(arguments: list[str], expected: str, tmp_path: Path) -> None:
    output = ["--output-dir", str(tmp_path / "out")]
    done = run_python("-m", "hvdtrain.cli", "run", "-np", "2", *output, *arguments, "--framework", "torch")
    assert done.returncode != 0
    # The launcher finds all of these by itself; nothing starts, and nothing else is said.
    assert done.stderr.startswith("error: ")
    assert done.stderr.count(expected) == 1
    assert done.stderr.count("\n") <= 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unreadable_corpus_is_told(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"good line\n\xff\xfe broken\n")
    arguments = [
        "--set",
        "data.corpus=null",
        "--set",
        f"data.files=[{bad}]",
        "--output-dir",
        str(tmp_path / "out"),
    ]
    # A rank by itself; and the launcher, before there is one.
    for program in (["hvdtrain.torch.job"], ["hvdtrain.cli", "run", "bert", "--framework=torch", "-np=2"]):
        done = run_python("-m", *program, *arguments)
        assert done.returncode != 0
        assert done.stderr.count("bad.txt") == 1
        assert "Traceback" not in done.stderr
        assert "rank" not in done.stderr or "cli" not in program[0]


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
