"""16-bit floats on the wire of the installed Horovod, against NumPy's sums in float32, each rounded."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.engine import wire_worker
from tests.engine.wire_worker import DTYPES, SIZES, bits, normal
from tests.jobs.runs import FRAMEWORKS, INSTALLED, ROOT, launch

KINDS = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
QUIET = {"bfloat16": 0x0040, "float16": 0x0200}
# TensorFlow takes long to start, and calls the same sums.
QUICK = [("torch", "gloo", 2), ("torch", "mpirun", 2)]
WORLDS = [
    pytest.param(
        (framework, wire, ranks),
        id=f"{framework}-{wire}-{ranks}",
        marks=[] if (framework, wire, ranks) in QUICK else [pytest.mark.slow],
    )
    for framework in FRAMEWORKS
    for wire in ("gloo", "mpirun")
    for ranks in (2, 3)
]
WORLDS += [
    pytest.param((framework, "nccl", 2), id=f"{framework}-nccl-2", marks=pytest.mark.gpu)
    for framework in INSTALLED
]
# Stands in front of the installed Horovod and has no record of a build, as a released Horovod has none.
PLAIN_HOROVOD = "from pkgutil import extend_path\n__path__ = extend_path(__path__, __name__)\n"

Results = list[dict[str, np.ndarray]]


@pytest.fixture(scope="module", params=WORLDS)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    framework, wire, ranks = request.param
    folder = tmp_path_factory.mktemp("wire")
    done = launch(ranks, [wire_worker.__file__, framework, str(folder)], wire=wire, timeout=120)
    assert done.returncode == 0, done.stdout[-5000:]
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(ranks)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["sum", "fused"])
def test_sums_are_those_of_float32_rounded_to_nearest_even(
    results: Results, dtype: str, size: str, how: str
) -> None:
    arrays = [bits(size, rank) for rank in range(len(results))]
    for result in results:
        assert_sum(result[f"{dtype}/{how}/{size}"], arrays, dtype)
        np.testing.assert_array_equal(result[f"{dtype}/{how}/{size}"], results[0][f"{dtype}/{how}/{size}"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scattered_sum_is_the_same(results: Results, dtype: str) -> None:
    arrays = [normal(dtype, rank) for rank in range(len(results))]
    parts = [result[f"{dtype}/reducescatter"] for result in results]
    assert_sum(np.concatenate(parts), arrays, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_reductions(results: Results, dtype: str) -> None:
    ranks = len(results)
    arrays = [number(normal(dtype, rank), dtype) for rank in range(ranks)]
    found = {
        name: number(results[0][f"{dtype}/{name}"], dtype) for name in ("Average", "Min", "Max", "Product")
    }
    np.testing.assert_array_equal(found["Min"], np.min(arrays, axis=0))
    np.testing.assert_array_equal(found["Max"], np.max(arrays, axis=0))
    precision = float(ml_dtypes.finfo(KINDS[dtype]).eps)
    np.testing.assert_allclose(found["Product"], np.prod(arrays, axis=0), rtol=ranks * precision, atol=1e-7)
    np.testing.assert_allclose(found["Average"], np.mean(arrays, axis=0), rtol=0, atol=4 * ranks * precision)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_only_moved_keeps_every_bit(results: Results, dtype: str) -> None:
    ranks = len(results)
    everybodys = np.concatenate([bits("odd", rank) for rank in range(ranks)])
    share = 120 // ranks
    for rank, result in enumerate(results):
        np.testing.assert_array_equal(result[f"{dtype}/allgather"], everybodys)
        np.testing.assert_array_equal(result[f"{dtype}/broadcast"], bits("odd", ranks - 1))
        own = [normal(dtype, other)[rank * share : (rank + 1) * share] for other in range(ranks)]
        np.testing.assert_array_equal(result[f"{dtype}/alltoall"], np.concatenate(own))


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("-m", "hvdtrain.torch.job", "--spec"), id="torch"),
        pytest.param(("-m", "hvdtrain.tensorflow.job", "--spec"), id="tensorflow", marks=pytest.mark.slow),
        pytest.param(("-m", "hvdtrain.cli", "plan"), id="plan"),
    ],
)
def test_without_bfloat16_on_the_wire_bf16_is_refused_before_anything_starts(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").write_text(PLAIN_HOROVOD)
    done = subprocess.run(
        [sys.executable, *command, "bert", "--set", "compression.type=bf16"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: compression.type: bf16" in done.stderr
    assert "use fp16" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["horovod"]


def assert_sum(found: np.ndarray, arrays: list[np.ndarray], dtype: str) -> None:
    """Equal to the bit to a sum of `arrays` taken in one order or another; a NaN may be any, but quiet."""
    exact = np.zeros(found.shape, bool)
    for order in permutations(arrays):
        total = order[0]
        for array in order[1:]:
            with np.errstate(all="ignore"):
                total = (number(total, dtype) + number(array, dtype)).astype(KINDS[dtype]).view(np.uint16)
        is_nan = np.isnan(number(total, dtype))
        quiet = np.isnan(number(found, dtype)) & (found & QUIET[dtype] != 0)
        exact |= np.where(is_nan, quiet, found == total)
    assert exact.all(), f"{np.count_nonzero(~exact)} of {exact.size} differ, the first: {found[~exact][:5]}"


def number(found: np.ndarray, dtype: str) -> np.ndarray:
    return found.view(KINDS[dtype]).astype(np.float32)
