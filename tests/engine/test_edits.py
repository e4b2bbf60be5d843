"""The edits fit the real sources, are chosen by version, and refuse what they do not know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hvdtrain.core.errors import EngineError
from hvdtrain.engine.edits import EDITS, REVISION, Edit, apply_edits, edits_for, recipe_digest
from hvdtrain.engine.versions import Versions

CPU = Versions("cp311-x86_64", torch="2.13.0+cpu", tensorflow="2.21.0", tensorflow_cuda="12.5.1")
GPU_BOTH = Versions(
    "cp312-x86_64", torch="2.10.0", torch_cuda="12.8", tensorflow="2.20.0", tensorflow_cuda="12.5.1",
    nvcc="12.4", nccl="2.27.5",
)  # fmt: skip
GPU_TF_221 = replace(GPU_BOTH, torch=None, torch_cuda=None, tensorflow="2.21.0")
GPU_TORCH_211 = Versions("cp312-x86_64", torch="2.11.0", torch_cuda="13.0", nvcc="13.0", nccl="2.28.9")
GPU_TORCH_215 = replace(GPU_TORCH_211, torch="2.15.0", torch_cuda="13.2", nvcc="13.2")

ROWS = {
    "cpu": (CPU, "17", False),
    "gpu both": (GPU_BOTH, "17", False),
    "gpu tensorflow 2.21": (GPU_TF_221, "17", True),
    "gpu torch 2.11": (GPU_TORCH_211, "17", False),
    "gpu torch 2.15": (GPU_TORCH_215, "20", False),
    "cpu torch 2.14.1": (replace(CPU, torch="2.14.1+cpu"), "20", False),
    "cpu torch 2.14 pre-release": (replace(CPU, torch="2.14.0.dev1"), "20", False),
}


@pytest.mark.parametrize(("versions", "standard", "stream_handle"), ROWS.values(), ids=ROWS)
def test_a_version_row_gets_the_sources_it_needs(
    versions: Versions, standard: str, stream_handle: bool, source: Path
) -> None:
    apply_edits(edits_for(versions), source)

    def text(name: str) -> str:
        return (source / name).read_text()

    assert f"set(CMAKE_CXX_STANDARD {standard})" in text("horovod/torch/CMakeLists.txt")
    assert "set(CMAKE_CXX_STANDARD 17)" in text("CMakeLists.txt")
    assert "xla_mpi_ops" not in text("horovod/tensorflow/CMakeLists.txt")
    ops = text("horovod/tensorflow/mpi_ops.cc")
    assert ("platform_specific_handle().stream" in ops) is stream_handle
    assert ("GpuStreamHandle AsGpuStreamValue(Stream* stream);" in ops) is not stream_handle
    assert "libnccl.so.2" in text("cmake/Modules/FindNCCL.cmake")
    assert 'dlopen("libcuda.so.1", RTLD_LAZY)' in text("horovod/torch/cuda_util.cc")
    assert "VERSION 3.5" in text("third_party/gloo/CMakeLists.txt")
    for name in ("setup.py", "horovod/runner/js_run.py", "horovod/torch/CMakeLists.txt"):
        assert "distutils" not in text(name)
    compile(text("setup.py"), "setup.py", "exec")
    assert "VERBOSE=1" not in text("setup.py")


def test_edits_do_not_apply_twice(source: Path) -> None:
    apply_edits(edits_for(CPU), source)
    with pytest.raises(EngineError, match=EDITS[0].name):
        apply_edits(edits_for(CPU), source)


REPLACING = [edit for edit in EDITS if edit.anchor is not None]
ADDING = [edit for edit in EDITS if edit.anchor is None]


@pytest.mark.parametrize("edit", REPLACING, ids=lambda edit: edit.name)
@pytest.mark.parametrize("copies", [0, 2])
def test_an_anchor_not_found_once_is_refused_by_name(edit: Edit, copies: int, tmp_path: Path) -> None:
    assert edit.anchor is not None
    path = tmp_path / edit.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("before\n" + edit.anchor * copies + "after\n")
    with pytest.raises(EngineError) as caught:
        edit.apply(tmp_path)
    assert edit.name in str(caught.value)
    assert edit.file in str(caught.value)
    assert f"{copies} times" in str(caught.value)
    assert path.read_text() == "before\n" + edit.anchor * copies + "after\n"


@pytest.mark.parametrize("edit", ADDING, ids=lambda edit: edit.name)
def test_a_new_file_is_written_once(edit: Edit, tmp_path: Path) -> None:
    edit.apply(tmp_path)
    assert (tmp_path / edit.file).read_text() == edit.replacement
    with pytest.raises(EngineError, match=edit.name):
        edit.apply(tmp_path)


def test_the_revision_is_raised_with_the_edits() -> None:
    """Wheels of different content must not have one version: raise REVISION when this digest changes."""
    # The digest itself depends on the revision, which stands in one of the edits.
    others = (edit for edit in EDITS if edit.name != "stamp")
    assert (REVISION, recipe_digest(others)[:16]) == (1, "bea110ddb4008dc3")


def test_every_python_file_that_is_edited_still_compiles(source: Path) -> None:
    apply_edits(edits_for(CPU), source)
    for name in {edit.file for edit in EDITS if edit.file.endswith(".py")}:
        compile((source / name).read_text(), name, "exec")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"core-cxx17.*CMakeLists\.txt"):
        EDITS[0].apply(tmp_path)


def test_every_edit_has_its_own_name_and_says_why() -> None:
    assert len({edit.name for edit in EDITS}) == len(EDITS)
    assert all(len(edit.why) > 20 for edit in EDITS)
