"""Messages of more than 2^31 - 1 bytes, and a model of 300 million weights that goes on from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.run.metrics import read_metrics
from tests.jobs.runs import FRAMEWORKS, ROOT, TINY, launch, small_corpus, train_all
from tests.jobs.standing import end_all

pytestmark = pytest.mark.slow
_GIB = 2**30
# One weight of 1.2 GB; those of the optimizer with it are beyond an int's bytes.
LARGE = [
    *TINY,
    "model.vocab_size=1200000",
    "model.hidden_size=256",
    "model.num_hidden_layers=1",
    "optimizer={type: sgd, learning_rate: 1e-3, momentum: 0.9}",
    "batch={per_device_train_batch_size: 1, global_batch_size: 2}",
    "schedule.type=constant_with_warmup",
    "schedule.warmup_steps=0",
    "max_steps=2",
]


def needs_memory(gib: int) -> None:
    # Ranks that stay have some of it.
    end_all()
    free = psutil.virtual_memory().available / _GIB
    if free < gib:
        pytest.skip(f"needs {gib} GiB of free memory, and {free:.1f} are")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("wire", ["mpirun", "gloo"])
def test_more_bytes_than_an_int_counts(framework: str, wire: str, tmp_path: Path) -> None:
    needs_memory(11)
    program = str(ROOT / "tests" / "jobs" / "messages.py")
    done = launch(2, [program, framework, str(tmp_path)], wire)
    assert done.returncode == 0, done.stdout[-3000:]
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def test_three_hundred_million_weights_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    needs_memory(18)
    sets = [*LARGE, *small_corpus(tmp_path / "corpus")]
    whole = train_all(tmp_path, "torch", 2, {"whole": [*sets, "checkpointing.save_steps=1"]})["whole"]
    end_all()
    first = whole / "checkpoint-1"
    assert sum(file.stat().st_size for file in first.iterdir()) > 2**31
    assert max(array.nbytes for array in load_model(first).values()) > _GIB
    rest = train_all(tmp_path, "torch", 2, {"rest": sets}, {"rest": first})["rest"]
    end_all()
    expected = {line["step"]: line["loss"] for line in read_metrics(whole)[0]}
    assert {line["step"]: line["loss"] for line in read_metrics(rest)[0]} == {2: expected[2]}
