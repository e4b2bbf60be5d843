"""Running `hvdtrain evaluate` from tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.jobs.runs import launch

PROGRAM = ["-m", "hvdtrain.cli", "evaluate"]


def evaluate(*arguments: str | Path, np: int = 1) -> dict[str, Any]:
    """What it prints with `--json`, on np ranks."""
    done = launch(np, [*PROGRAM, *map(str, arguments), "--json"])
    assert done.returncode == 0, done.stdout[-3000:]
    # The launcher says which rank has written a line; libraries have written some as well.
    text = re.sub(r"^\[\d+,\d+\]<\w+>: ?", "", done.stdout, flags=re.MULTILINE)
    found: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    return found
