"""What the tests of data share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.data.corpora import TEXT


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)
    return path
