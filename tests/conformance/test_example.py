"""A new policy is one file and its entry in the registry: the spec, the plan and the rest then know it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import hvdtrain
from tests.conformance import example_policy

READ = """
import json, sys
import numpy as np
from hvdtrain.core.errors import SpecError
from hvdtrain.core.plan.plan import make_plan
from hvdtrain.core.spec.job_spec import json_schema, load_spec
from hvdtrain.core.families import bert

spec = load_spec("bert", ["compression.type=ternary"])
plan = make_plan(
    spec, bert.weights(spec.model), size=2, threads=1, train_tokens=np.full(100, 128), validation_samples=0
)
try:
    load_spec("bert", ["compression={type: ternary, ratio: 0.5}"])
except SpecError as error:
    told = str(error)
print(json.dumps({
    "spec": spec.model_dump()["compression"],
    "wire": plan.wire_bytes_per_update,
    "expected": sum(bucket.size + 4 for bucket in plan.buckets),
    "told": told,
    "schema": "ternary" in json.dumps(json_schema()),
}))
"""


def test_a_policy_is_one_file_and_its_entry(tmp_path: Path) -> None:
    package = tmp_path / "hvdtrain"
    shutil.copytree(Path(hvdtrain.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    folder = package / "core" / "compression"
    shutil.copy(example_policy.__file__, folder / "ternary.py")
    registry = folder / "__init__.py"
    before = registry.read_text()
    entry = "    NoCompression,\n"
    assert before.count(entry) == 1
    line = "from hvdtrain.core.compression.ternary import Ternary\n\n# The registry"
    registry.write_text(before.replace(entry, f"{entry}    Ternary,\n").replace("\n# The registry", line))
    done = subprocess.run(
        [sys.executable, "-c", READ], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["spec"] == {"type": "ternary", "match": "*"}
    assert found["wire"] == found["expected"]
    assert "compression.ratio: unknown key" in found["told"]
    assert found["schema"]
