"""Safetensors files that are written and read array by array, against the library's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from hvdtrain.core.checkpoints.arrays import ArrayStream, Kind, SavedArrays, write_arrays

DTYPES = [
    *(np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *map(np.dtype, ("bool", "float16", "float32", "float64", "complex64")),
    np.dtype(ml_dtypes.bfloat16),
]
Arrays = dict[str, np.ndarray]


def of_kind(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)


ARRAYS = st.dictionaries(
    st.text(max_size=8),
    st.builds(
        of_kind,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        st.sampled_from(DTYPES),
        st.integers(0, 9),
    ),
    max_size=6,
)


@given(ARRAYS.flatmap(lambda arrays: st.tuples(st.just(arrays), st.permutations([*arrays]))))
def test_a_file_is_as_the_librarys_in_whatever_order_arrays_come(
    given_: tuple[Arrays, list[str]],
) -> None:
    arrays, order = given_
    # The library sorts by name.
    arrays = dict(sorted(arrays.items()))
    kinds = {name: Kind.of(array) for name, array in arrays.items()}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        record = write_arrays(path, ArrayStream(kinds, ((name, arrays[name]) for name in order)))
        assert path.read_bytes() == save(arrays, metadata={"format": "pt"})
        assert record == (path.stat().st_size, hashlib.blake2b(path.read_bytes()).hexdigest())
        for found in (load_file(path), SavedArrays(path)):
            assert found.keys() == arrays.keys()
            for name, array in arrays.items():
                assert Kind.of(found[name]) == Kind.of(array)
                assert found[name].tobytes() == array.tobytes()
        assert SavedArrays(path).shapes == {name: array.shape for name, array in arrays.items()}


def test_memory_layout_does_not_matter(tmp_path: Path) -> None:
    arrays = {"turned": np.arange(6.0).reshape(2, 3).T, "every second": np.arange(9)[::2]}
    write_arrays(tmp_path / "file", ArrayStream.of(arrays))
    for name, array in load_file(tmp_path / "file").items():
        np.testing.assert_array_equal(array, arrays[name])


EXPECTED = {"a": Kind((2, 3), np.dtype("float32")), "b": Kind((), np.dtype("int64"))}
GOOD: Arrays = {"a": np.zeros((2, 3), np.float32), "b": np.array(1)}


@pytest.mark.parametrize(
    ("came", "told"),
    [
        pytest.param([("a", GOOD["a"])], "b: expected, and never came", id="missing"),
        pytest.param([("a", GOOD["a"].T)], r"a: expected .*\(2, 3\).*found .*\(3, 2\)", id="another shape"),
        pytest.param([("a", np.zeros((2, 3)))], "a: expected .*float32.*found .*float64", id="another dtype"),
        pytest.param([*GOOD.items(), ("b", GOOD["b"])], "b: expected None", id="twice"),
        pytest.param([("a", GOOD["a"][:1])], r"a: expected .*\(2, 3\).*found .*\(1, 3\)", id="half"),
        pytest.param([*GOOD.items(), ("c", GOOD["b"])], "c: expected None", id="more"),
    ],
)
def test_a_stream_that_is_not_what_was_said_is_refused(
    tmp_path: Path, came: list[tuple[str, np.ndarray]], told: str
) -> None:
    with pytest.raises(SafetensorError, match=told):
        write_arrays(tmp_path / "file", ArrayStream(EXPECTED, came))


@pytest.mark.parametrize("shape", [(4,), (4, 3, 2)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_array_may_be_read_by_rows(tmp_path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    arrays = {"b": np.ones(3, dtype), "a": of_kind(shape, dtype, 0)}
    write_arrays(tmp_path / "file", ArrayStream.of(arrays))
    saved = SavedArrays(tmp_path / "file")
    for place, expected in enumerate(arrays["a"]):
        row = saved.row("a", place)
        assert Kind.of(row) == Kind(shape[1:], dtype)
        assert row.tobytes() == expected.tobytes()


def test_a_dtype_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="w: safetensors has no complex128"):
        write_arrays(tmp_path / "file", ArrayStream.of({"w": np.zeros(2, np.complex128)}))


def test_an_array_is_written_before_the_next_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for number in range(3):
            # Beyond what Python buffers of a file.
            yield str(number), np.full(100_000, number)
            header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
            assert file.stat().st_size >= header + 800_000 * (number + 1)

    kinds = {str(number): Kind((100_000,), np.dtype(np.int64)) for number in range(3)}
    write_arrays(file, ArrayStream(kinds, arrays()))
    assert json.loads(file.read_bytes()[8:].split(b"}}", 1)[0] + b"}}")["2"]["data_offsets"][1] == 2_400_000


def test_what_is_not_there_is_no_array(tmp_path: Path) -> None:
    write_arrays(tmp_path / "file", ArrayStream.of(GOOD))
    found = SavedArrays(tmp_path / "file")
    assert ("a" in found, "c" in found, len(found)) == (True, False, 2)
    with pytest.raises(KeyError):
        found["c"]
