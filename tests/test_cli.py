"""`hvdtrain validate`, `plan` and `schema`: what they print, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hvdtrain.core.spec.job_spec import json_schema

SPEC = """
model: {vocab_size: 80, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16,
        max_position_embeddings: 16}
data: {files: [words.txt], max_seq_length: 16, validation_split: 0.2, cache_dir: cache}
batch: {global_batch_size: 16, per_device_train_batch_size: 2}
num_train_epochs: 2
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with a spec and its little corpus."""
    (tmp_path / "torn.csv").write_text("id,text\n1,fine\n2\n")
    (tmp_path / "words.txt").write_text("\n\n".join(f"the {i} words of page {i * i}." for i in range(200)))
    (tmp_path / "job.yaml").write_text(SPEC)
    return tmp_path


def hvdtrain(job: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hvdtrain.cli", *arguments],
        cwd=job,
        env={
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "PATH": "/usr/bin:/bin",
            "COLUMNS": "100",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_good_spec_is_valid(job: Path) -> None:
    done = hvdtrain(job, "validate", "job.yaml", "--set", "optimizer.learning_rate=1e-4")
    assert (done.returncode, done.stdout, done.stderr) == (0, "job.yaml: valid\n", "")


def test_a_packaged_spec_is_valid_by_its_name(job: Path) -> None:
    assert hvdtrain(job, "validate", "bert").stdout == "bert: valid\n"


HELD_OUT = ("--set", "data.validation_split=null", "--set", "data.validation_files=[nowhere/*.csv]")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["validate", "job.yaml", "--set", "optimizer.learning_rat=1"], "did you mean 'learning_rate'"),
        (["validate", "job.yaml", "--set", "max_steps=ten"], "max_steps"),
        (["validate", "missing.yaml"], "missing.yaml: no such file"),
        (["validate", "words.txt"], "expected a mapping of sections"),
        (["plan", "job.yaml", "--set", "schedule.type=cosin"], "did you mean 'cosine'"),
        (["plan", "job.yaml", "-np", "3"], "16 is not a multiple of 3 ranks"),
        (["plan", "job.yaml", "--set", "data.files=[nowhere/*.txt]"], "nowhere/*.txt"),
        (
            ["plan", "job.yaml", "--set", "data.files=[torn.csv]"],
            "torn.csv:3: 1 field(s), and the header has 2",
        ),
        (["validate", "job.yaml", "--set", "data.validation_files=[torn.csv]"], "give one of them"),
        (
            ["run", "job.yaml", "--framework", "torch", "-np", "2", *HELD_OUT],
            "data.validation_files: 'nowhere/*.csv' matches",
        ),
        (["evaluate", "nowhere"], "nowhere: no such folder; give a job's output directory"),
        (["evaluate", "."], "neither it nor the folder above holds spec.json"),
        (["generate", "nowhere", "a prompt"], "nowhere: no such folder"),
        (["generate", ".", "a prompt"], "holds no model"),
        (["export", ".", "--to", "keras"], "holds no model"),
        (["run", "job.yaml", "--framework", "torch", "-np", "2", "--set", "seed=-1"], "seed"),
    ],
)
def test_what_is_wrong_is_one_message_and_status_1(job: Path, arguments: list[str], told: str) -> None:
    done = hvdtrain(job, *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate"],
        ["plan", "job.yaml", "-np", "0"],
        ["plan", "job.yaml", "--zero-stage", "4"],
        *(["plan", "job.yaml", "--fit", bad] for bad in ("24 apples", "24GiB/rank", "0")),
        ["nonsense"],
        ["schema", "--nonsense"],
    ],
)
def test_a_wrong_command_line_is_status_2_with_help(job: Path, arguments: list[str]) -> None:
    done = hvdtrain(job, *arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_plan_as_json_holds_every_number(job: Path) -> None:
    done = hvdtrain(job, "plan", "job.yaml", "-np", "4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["size"] == 4
    assert found["batch"] == {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "global_batch_size": 16,
    }
    assert found["updates_per_epoch"] == -(-found["train_samples"] // 16)
    assert found["max_steps"] == 2 * found["updates_per_epoch"]
    # Embeddings and their norm; attention and its norm; feed-forward and its norm; the head and its norm.
    embeddings, attention, forward = (80 + 16 + 2) * 8 + 16, 4 * (64 + 8) + 16, 2 * 128 + 16 + 8 + 16
    assert found["parameters"] == embeddings + attention + forward + (64 + 8 + 16 + 80)
    assert found["wire_bytes_per_update"] == 4 * found["parameters"]
    assert sum(bucket["elements"] for bucket in found["buckets"]) == found["parameters"]


def test_the_plan_as_a_table_shows_the_same_numbers(job: Path) -> None:
    settings = ["plan", "job.yaml", "-np", "4"]
    found = json.loads(hvdtrain(job, *settings, "--json").stdout)
    done = hvdtrain(job, *settings)
    assert done.returncode == 0
    for told in ("16 samples", f"{found['parameters']:,}", f"{found['train_samples']} samples"):
        assert told in done.stdout
    found = found["text"]
    assert f"{found['tokenizer_size']} of {found['vocab_size']} tokens" in done.stdout
    assert found["tokenizer_size"] <= found["vocab_size"] == 80
    assert found["unknown_share"] == 0.0


def test_the_plan_shows_stages_side_by_side_and_what_fits(job: Path) -> None:
    command = ["plan", "job.yaml", "-np", "4", "--json", "--zero-stage"]
    stages = json.loads(hvdtrain(job, *command, "all").stdout)["stages"]
    assert [*stages] == ["0", "1", "2", "3"]
    third = json.loads(hvdtrain(job, *command, "3").stdout)
    for name in ("parameters", "memory", "wire_bytes_per_update"):
        assert stages["3"][name] == third[name] != stages["1"][name] or name == "parameters"
    fits = json.loads(hvdtrain(job, *command, "3", "--fit", "0.5MB").stdout)
    assert fits["varied"] == "num_hidden_layers"
    assert fits["available"] == 500_000
    assert stages["3"]["memory"]["total"] < fits["stages"].pop("3")["memory"]["total"] <= 500_000
    assert not fits["stages"]
    assert "num_hidden_layers" in hvdtrain(job, "plan", "job.yaml", "--fit", "1MiB").stdout


def test_threads_are_shared_among_the_ranks_of_a_host_unless_given(job: Path) -> None:
    def threads(*more: str) -> int:
        found = json.loads(hvdtrain(job, "plan", "job.yaml", "-np", "8", "--json", *more).stdout)
        assert isinstance(found["threads"], int)
        return found["threads"]

    assert threads("--local", "1") >= threads("--local", "8") >= 1
    assert threads("--set", "num_threads=3") == 3


def test_the_schema_is_the_specs_as_json(job: Path) -> None:
    done = hvdtrain(job, "schema")
    assert done.returncode == 0
    assert json.loads(done.stdout) == json_schema()


def test_a_dry_run_prints_the_command_and_starts_nothing(job: Path) -> None:
    done = hvdtrain(job, "run", "job.yaml", "--framework", "torch", "-np", "2", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "-m hvdtrain.torch.job --spec job.yaml" in done.stdout
    assert not (job / "outputs").exists()
    assert not (job / "cache").exists()
