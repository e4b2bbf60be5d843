"""Every table, in a pipe and at 80 and 60 columns: names and numbers are whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Long names and large numbers, as each table may have them, and what must be found in it.
TABLES = {
    "simulate": """
from hvdtrain.bench.problems import PROBLEMS
from hvdtrain.bench.simulate import Outcome
from hvdtrain.bench.simulate_report import as_table
from hvdtrain.core.tables import print_table
problem = PROBLEMS["least-squares"](2, 0, "float32")
name = "powersgd matrix_approximation_rank=4 start_powerSGD_iter=10"
outcomes = [Outcome(name, problem.name, 64) for _ in range(2)]
for outcome in outcomes:
    outcome.updates, outcome.losses, outcome.distance = [0, 200], [2.0, 1.7284], 0.000123456
    outcome.sent, outcome.received = [0, 1234567890], [0, 987654321]
    outcome.state_bytes, outcome.seconds = 123456789, 1234.5
print_table(as_table(problem, outcomes))
WHOLE: powersgd matrix_approximation_rank=4 start_powerSGD_iter=10 1.7284 1.000 1.23e-04 5.9 MiB 117.7 1234.5
""",
    "plan": """
import sys
from hvdtrain.cli import main
sys.argv = ["hvdtrain", "plan", "bert", "-np", "4"]
main()
WHOLE: gradient buckets weight decay 16-bit weights unless HOROVOD_CYCLE_TIME activations MiB
""",
    "doctor": """
from hvdtrain.engine.doctor import print_table
from hvdtrain.engine.rows import Row
path = "/a/rather/long/path/to/an/environment/.venv/bin/python3"
print_table([Row("horovod.tensorflow", "ok", f"3.11.7 at {path}", "hvdtrain engine build --install --force")])
WHOLE: horovod.tensorflow ok 3.11.7 /a/rather/long/path/to/an/environment/.venv/bin/python3 --install --force
""",
    "step_time and wrappers": """
sys.path.insert(0, "benchmarks")
from hvdtrain.core.tables import print_table
from side_by_side.results import Result, as_table
name = "MultiWorkerMirroredStrategy, tf.function with jit_compile"
print_table(as_table("torch 2.13.0: a title that is long enough to be wrapped, vocabulary 30522",
    [Result(name, 1234.5, 1.0234, 0.98, 12.34, (1.0,), 1e-7)]))
WHOLE: MultiWorkerMirroredStrategy, tf.function with jit_compile 1234.5 ms 1.023 0.98-12.34 1e-07 ratio 30522
""",
    "codecs": """
sys.path.insert(0, "benchmarks")
# Not by its name, which a module of Python's own has.
import importlib.util
spec = importlib.util.spec_from_file_location("measuring", "benchmarks/codecs.py")
sys.modules["measuring"] = codecs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(codecs)
from hvdtrain.core.tables import print_table
from hvdtrain.core.update.buckets import Bucket
results = [codecs.Result("topk momentum=0.9 local_clipping=1.0", "tensorflow", 123.4, 12.345, 0.12, 1.23)]
print_table(codecs.as_table(results, codecs.bert_bucket(2**20)))
WHOLE: topk momentum=0.9 local_clipping=1.0 tensorflow 123 ms 12.35 0.12 1.23 of memcpy's rate of hook's time
""",
    "quality": """
sys.path.insert(0, "benchmarks")
from hvdtrain.core.tables import print_table
from quality import as_table
run = {"loss": 10.3162, "bytes": 123456789012.0, "updates": 200}
print_table(as_table("tensorflow", "bert", {"none": run, "local_sgd, 4 updates, overlap": run}))
WHOLE: local_sgd, 4 updates, overlap 10.3162 +0.00% 117737.6 MiB 100.0% validation loss of none's
""",
    "slow_link": """
sys.path.insert(0, "benchmarks")
from hvdtrain.core.tables import print_table
from slow_link import as_table
run = {"bytes": 123456789.0, "compute": 1.234, "wire": 12.345, "seconds": 14.567, "ratio": 1.1834}
print_table(as_table("torch over gloo: 2 hosts at 100 Mbit/s", {"local_sgd, 4 updates, overlap": [run] * 4}))
WHOLE: local_sgd, 4 updates, overlap 123,456,789 1234 ms 12345 ms 14567 ms 1.18 1.18 1.18 1.18
""",
}


@pytest.mark.parametrize("columns", [None, "80", "60"])
@pytest.mark.parametrize("name", TABLES)
def test_names_and_numbers_are_whole(name: str, columns: str | None) -> None:
    program, _, whole = TABLES[name].partition("WHOLE:")
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR")}
    env |= {"PYTHONPATH": str(ROOT), "COLUMNS": columns} if columns else {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = re.split(r"[\s│┃]+", done.stdout)
    assert [word for word in whole.split() if word not in words] == [], done.stdout
    assert "…" not in done.stdout
    # What holds a table together, too: every line of it is as wide as the others.
    assert len({len(line) for line in done.stdout.splitlines() if line[:1] in "┏┃┡│└"}) <= 1
