"""Rows of text with labels, and what is prepared from them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from hvdtrain.core.data.batches import Dataset
from hvdtrain.core.data.tokenizer import token_ids, train_tokenizer
from hvdtrain.core.tasks import text_classification
from hvdtrain.core.tasks.text_classification import DataSpec, TaskSpec

WORDS = ["the", "import", "system", "finds", "modules", "and", "statements", "bind", "names", "to", "objects"]
TOKENIZER = train_tokenizer(lambda: [" ".join(WORDS)] * 9, 120)
IDS = token_ids(TOKENIZER, 120, "the tokenizer")
FIELDS = '{"text": "%s", "label": "%s"}\n'
texts = st.lists(st.sampled_from([*WORDS, "[SEP]", "zzz"]), min_size=1, max_size=20).map(" ".join)


def model(**fields: Any) -> SimpleNamespace:
    """What the task asks of a model's section."""
    given = {"vocab_size": 400, "num_labels": 2, "max_position_embeddings": 64, "type_vocab_size": 2}
    given["init_from"] = None
    return SimpleNamespace(**given | fields)


def prepare(folder: Path, num_labels: int = 2, seed: int = 0, **fields: Any) -> Dataset:
    """The data of a section with the cache in a folder."""
    data = DataSpec(cache_dir=str(folder / "cache"), **{"max_seq_length": 32} | fields)
    return text_classification.prepare(
        model(num_labels=num_labels), data, TaskSpec(), seed, lambda line: None
    )


def write(folder: Path, content: str, name: str = "train.jsonl") -> str:
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name)


def rows(count: int, labels: str = "ab") -> str:
    return "".join(
        FIELDS % (f"{WORDS[i % 9]} {WORDS[i % 7]} number {i}", labels[i % len(labels)]) for i in range(count)
    )


def labels_of(split: Any) -> list[int]:
    batch = split.collate(np.arange(len(split)), 0, len(split))
    return [int(number) for number in batch.targets[:, 0]]
