"""A small corpus, and what is made of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hvdtrain.core.data import Dataset, Sequences
from hvdtrain.core.tasks.masked_lm import DataSpec

VOCAB = 300
TEXT = "\n\n".join(
    f"Paragraph {i} tells of {i * 7919} things and of {'many ' * (i % 9)}others." for i in range(120)
)
# Prints what it announces and, last, what it opened; arguments: DataSpec as JSON, vocabulary, seed.
PREPARE = """
import json, sys
from hvdtrain.core.data import prepare
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks.masked_lm import DataSpec
try:
    dataset = prepare(
        DataSpec.model_validate_json(sys.argv[1]), int(sys.argv[2]), 0, lambda line: print(line, flush=True)
    )
except DataError as error:
    sys.exit(f"DataError: {error}")
print(json.dumps([dataset.fingerprint, len(dataset.train), len(dataset.validation)]))
"""


def spec(corpus: Path, cache: str = "cache", **more: Any) -> DataSpec:
    more = {"max_seq_length": 16, **more}
    return DataSpec(files=(str(corpus),), cache_dir=str(corpus.parent / cache), **more)


def start(data: DataSpec, before: str = "", vocab_size: int = VOCAB) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", before + PREPARE, data.model_dump_json(), str(vocab_size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(view: Sequences) -> list[list[int]]:
    return [view[i].tolist() for i in range(len(view))]


def same(one: Dataset, other: Dataset) -> bool:
    return (
        one.fingerprint == other.fingerprint
        and contents(one.train) == contents(other.train)
        and contents(one.validation) == contents(other.validation)
    )


def entry(cache: Path) -> Path:
    """The only cache directory, and nothing else but locks and the index."""
    [found] = [path for path in cache.iterdir() if path.suffix not in (".lock", ".json")]
    return found


def edit(path: Path) -> None:
    """Other text of the same size, under the same modification time."""
    times = path.stat()
    path.write_text(path.read_text().replace("things", "thinks"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
