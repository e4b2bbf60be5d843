"""An outsider's family, task and policy: files outside of the package, by dotted path and by entry point."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.job_spec import load_spec, parse_spec, spec_class

SPEC = """
model: {{model_type: {family}, width: 3}}
data: {{rows: 12}}
task: {{type: {task}}}
batch: {{per_device_train_batch_size: 2}}
compression: {{type: {policy}}}
max_steps: 4
"""
PATHS = {
    "family": "tests.outsider.family",
    "task": "tests.outsider.task:Regression",
    "policy": "tests.outsider.policy:Halves",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The same by entry points, as an installed distribution has them."""
    folder = tmp_path / "outsider-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(
        f"[hvdtrain.families]\nlinear = {PATHS['family']}\n"
        f"[hvdtrain.tasks]\nregression = {PATHS['task']}\n"
        f"[hvdtrain.compression]\nhalves = {PATHS['policy']}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"family": "linear", "task": "regression", "policy": "halves"}


def check(names: dict[str, str]) -> None:
    spec = parse_spec(SPEC.format(**names))
    assert (spec.model.model_type, spec.task.type) == (names["family"], names["task"])
    assert spec.compression.type == names["policy"]  # type: ignore[union-attr]
    assert (spec.model.width, spec.data.rows) == (3, 12)  # type: ignore[attr-defined]
    # What a run writes down is read back as it was.
    assert parse_spec(spec.model_dump_json()) == spec


def test_they_are_found_by_dotted_path() -> None:
    check(PATHS)


def test_they_are_found_by_entry_point(installed: dict[str, str]) -> None:
    check(installed)


def test_their_sections_are_checked_as_ours() -> None:
    text = SPEC.format(**PATHS).replace("width: 3", "widht: 3")
    with pytest.raises(SpecError, match=r"model.widht: unknown key .*; did you mean 'width'"):
        parse_spec(text)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "model.model_type=brt",
            "model.model_type: expected one of .*'bert'.* (found 'brt'); did you mean 'bert'",
        ),
        ("task.type=masked", "task.type: expected one of .*; did you mean 'masked_lm'"),
        (
            "task.type=causal_lm",
            "task.type: model_type bert is trained for 'masked_lm', 'text_classification' "
            "(found 'causal_lm')",
        ),
        ("model.model_type=nowhere.net:Net", "model.model_type: 'nowhere.net:Net' cannot be imported"),
        ("model.model_type=tests.outsider.task:Net", "'tests.outsider.task:Net' cannot be imported: .*Net"),
        ("compression.type=nowhere:Policy", "compression.type: 'nowhere:Policy' cannot be imported"),
    ],
)
def test_names_that_stand_for_nothing_are_told(override: str, told: str) -> None:
    with pytest.raises(SpecError, match=told.replace("(", r"\(").replace(")", r"\)")):
        load_spec("bert", [override])


def test_the_same_names_give_the_same_class() -> None:
    assert spec_class() is spec_class("bert", "masked_lm")


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_they_train(framework: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SPEC.format(**PATHS))
    root = Path(__file__).resolve().parents[2]
    job = [
        "-m",
        f"hvdtrain.{framework}.job",
        "--spec",
        tmp_path / "own.yaml",
        "--output-dir",
        tmp_path / "out",
    ]
    sets = ["--set", "logging.tensorboard=false", "--set", "model.dtype=float64"]
    done = subprocess.run(
        [sys.executable, *job, *sets], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
