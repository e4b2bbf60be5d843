"""Recorded curves: a change of the code's shape leaves every loss where it was.

The text and the vocabulary are made here, so nothing depends on the version of Python or of a tokenizer's
training. Losses are float64; processors round differently, hence the tolerance. Where a change of meaning is
wanted, `python -m tests.jobs.test_recorded` writes the file again, and the commit says why.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from hvdtrain.core.run.metrics import read_metrics
from tests.jobs.runs import TINY, train_all

RECORDED = Path(__file__).with_name("recorded.json")
SETTINGS = [
    *(setting for setting in TINY if not setting.startswith("model.vocab_size")),
    "model.vocab_size=64",
    "model.dtype=float64",
    "data.corpus=null",
    "data.packing=false",
    "batch.per_device_train_batch_size=2",
    "batch.gradient_accumulation_steps=2",
    "max_grad_norm=0.5",
    "max_steps=16",
]
SCENARIOS = {
    "none": [],
    "example": ["task.normalize=example", "optimizer.type=sgd", "optimizer.learning_rate=0.1"],
    "fp16": ["compression.type=fp16"],
    "powersgd": ["compression={type: powersgd, start_powerSGD_iter: 4}"],
    "topk": ["compression={type: topk, ratio: 0.1}"],
    "local_sgd": ["compression={type: local_sgd, sync_every: 4}"],
}


def data(folder: Path) -> list[str]:
    """Sixty documents of words w5 to w63, of 3 to 25 words, and a tokenizer of one token a word."""
    random = np.random.Generator(np.random.Philox(key=7))
    documents = [
        " ".join(f"w{word}" for word in random.integers(5, 64, random.integers(3, 26))) for _ in range(60)
    ]
    (folder / "corpus.txt").write_text("\n\n".join(documents))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*special, *(f"w{i}" for i in range(5, 64))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    return [f"data.files=[{folder / 'corpus.txt'}]", f"data.tokenizer_file={folder / 'tokenizer.json'}"]


def curves(folder: Path) -> dict[str, list[float]]:
    settings = [*SETTINGS, *data(folder)]
    runs = train_all(folder / "runs", "torch", 2, {n: [*settings, *more] for n, more in SCENARIOS.items()})
    return {
        name: [x["loss"] for x in read_metrics(run)[0]] + [x["eval_loss"] for x in read_metrics(run)[1]]
        for name, run in runs.items()
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return curves(tmp_path_factory.mktemp("recorded"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_curve_is_the_recorded_one(found: dict[str, list[float]], name: str) -> None:
    expected = json.loads(RECORDED.read_text())[name]
    assert len(found[name]) == len(expected)
    # Where a policy rounds to 16 bits or selects, one bit may become one rounding.
    np.testing.assert_allclose(found[name], expected, rtol=1e-11 if name in ("none", "example") else 1e-6)


def test_the_recorded_curves_are_of_different_jobs() -> None:
    recorded = json.loads(RECORDED.read_text())
    assert len({tuple(curve) for curve in recorded.values()}) == len(SCENARIOS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        RECORDED.write_text(json.dumps(curves(Path(made)), indent=1) + "\n")
    print(f"wrote {RECORDED}", file=sys.stderr)
