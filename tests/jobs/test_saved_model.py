"""A model of either framework opens with Hugging Face Transformers and gives the loss that was logged."""

from __future__ import annotations

import csv
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hvdtrain.core.data import eval_batches
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.spec.job_spec import load_spec
from tests.jobs.runs import TINY, launch

SETTINGS = [*TINY, "max_steps=5", "checkpointing.save_steps=2"]
SCRIPTS = {"torch": "torch_jobs/train_bert.py", "tensorflow": "tf_jobs/train_bert.py"}


@pytest.mark.parametrize(
    ("framework", "wire"), [pytest.param("torch", "mpi", marks=pytest.mark.slow), ("tensorflow", "gloo")]
)
def test_job_script_leaves_a_hugging_face_model(framework: str, wire: str, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / SCRIPTS[framework]
    overrides = [*SETTINGS, *tables(tmp_path)]
    settings = [part for override in overrides for part in ("--set", override)]
    done = launch(2, [str(script), *settings, "--output-dir", str(tmp_path / "out")], wire)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"model in {tmp_path / 'out' / 'model'}" in done.stdout

    saved = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert saved == ["checkpoint-2", "checkpoint-4", "checkpoint-5", "model"]
    logged = read_metrics(tmp_path / "out")[1][-1]["eval_loss"]
    found = evaluate_with_transformers(tmp_path / "out" / "model", overrides)
    assert found == pytest.approx(logged, rel=1e-5)

    files = {path.name for path in (tmp_path / "out" / "model").iterdir()}
    assert files == {
        *("model.safetensors", "untrained.safetensors", "model.safetensors.index.json", "config.json"),
        *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "sentence_bert_config.json"),
    }
    assert files < {path.name for path in (tmp_path / "out" / "checkpoint-4").iterdir()}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert tokenizer.mask_token == "[MASK]"
    assert (
        tokenizer.decode(tokenizer("the import statement")["input_ids"]) == "[CLS] the import statement [SEP]"
    )


def tables(folder: Path) -> list[str]:
    """Overrides for a table to train on and a table to evaluate on."""
    texts = [topics[name] for name in sorted(topics)]
    with (folder / "docs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "topic"), *enumerate(texts[:40])])
    parquet.write_table(pa.table({"topic": texts[40:44]}), folder / "held_out.parquet")
    return [
        "data.corpus=null",
        f"data.files=[{folder}/docs.csv]",
        f"data.validation_files=[{folder}/held_out.parquet]",
        "data.text_field=topic",
    ]


def evaluate_with_transformers(directory: Path, overrides: list[str]) -> float:
    spec = load_spec("bert", overrides)
    dataset = prepare_data(spec, print)
    model = AutoModelForMaskedLM.from_pretrained(directory).eval()
    loss, count = 0.0, 0
    for batch in eval_batches(dataset.validation, per_device=8, rank=0, size=1):
        labels = torch.full(batch.inputs["input_ids"].shape, -100)
        for row, (positions, tokens, weights) in enumerate(
            zip(batch.inputs["masked_positions"], batch.targets, batch.loss_weights, strict=True)
        ):
            real = weights > 0
            labels[row, positions[real]] = torch.from_numpy(tokens[real]).long()
        with torch.no_grad():
            found = model(
                input_ids=torch.from_numpy(batch.inputs["input_ids"]).long(),
                attention_mask=torch.from_numpy(batch.inputs["attention_mask"]),
                labels=labels,
            )
        predictions = int((labels != -100).sum())
        loss, count = loss + float(found.loss) * predictions, count + predictions
    return loss / count
