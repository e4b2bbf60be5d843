"""What is found on a machine, and what makes a build another build."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from hvdtrain.engine.versions import Versions, cuda_home, find_versions, mpi_flavour, nccl_home

FULL = Versions(
    "cp311-x86_64", "g++ 12.2.0", "2.10.0", "12.8", "2.20.0", "12.5.1",
    mpi="Open MPI 4.1.4", nvcc="12.4", nccl="2.27.5", cuda_archs="80",
)  # fmt: skip


@pytest.mark.parametrize("field", [field.name for field in fields(Versions)])
def test_the_key_changes_with_each_version(field: str) -> None:
    other = replace(FULL, **{field: "1.0"})
    assert other.key("edits") != FULL.key("edits")


def test_the_key_changes_with_the_edits_and_with_nothing_else() -> None:
    assert FULL.key("edits") == replace(FULL).key("edits")
    assert FULL.key("edits") != FULL.key("other edits")


def test_a_toolkit_that_has_no_part_in_a_build_does_not_make_it_another() -> None:
    cpu = Versions("cp311-x86_64", torch="2.13.0+cpu", tensorflow="2.21.0", tensorflow_cuda="12.5.1")
    assert replace(cpu, nvcc="13.0", nccl="2.28.9", cuda_archs="90").key("") == cpu.key("")
    # A CUDA torch is compiled with the toolkit, with NCCL or without.
    cuda = replace(cpu, torch="2.13.0+cu130", torch_cuda="13.0")
    assert replace(cuda, nvcc="13.0").key("") != cuda.key("")


def test_the_key_is_a_readable_folder_name() -> None:
    key = FULL.key("edits")
    assert key.startswith("0.28.1-cp311-x86_64-torch2.10.0-tf2.20.0-nccl-")
    assert "/" not in key
    assert " " not in key


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"nvcc": None}, "nvcc"),
        ({"nccl": None}, "NCCL"),
        ({"torch": "2.13.0+cpu", "torch_cuda": None}, "torch 2.13.0.cpu is a CPU build"),
        ({"torch_cuda": "13.0"}, "torch is built for CUDA 13.0 and nvcc is 12.4"),
        ({"nvcc": "13.0"}, "nvcc is 13.0"),
        ({"torch_cuda": "13.0", "tensorflow": None}, "torch is built for CUDA 13.0"),
        ({"torch_cuda": "13.0", "nvcc": "13.0", "tensorflow": None}, None),
        ({"torch": None, "torch_cuda": None}, None),
    ],
)
def test_nccl_needs_one_cuda_for_all(change: dict[str, str | None], words: str | None) -> None:
    versions = replace(FULL, **change)
    assert versions.with_nccl is (words is None)
    assert words is None or words.replace(".cpu", "+cpu") in str(versions.nccl_obstacle)


def test_the_installed_frameworks_are_found() -> None:
    found = find_versions()
    import torch

    assert found.torch == torch.__version__
    assert found.tensorflow == importlib.metadata.version("tensorflow")
    assert found.frameworks == ("torch", "tensorflow")
    # TensorFlow's own answer, as its build wrote it.
    from tensorflow.python.platform.build_info import build_info

    assert found.tensorflow_cuda == build_info.get("cuda_version")


def test_without_mpi_is_another_build() -> None:
    assert find_versions(with_mpi=False).mpi is None


@pytest.mark.parametrize(
    ("said", "flavour"),
    [
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to the community", "Open MPI 4.1.4"),
        ("HYDRA build details:\n    Version:                    4.0.2\n", "MPICH 4.0.2"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.11 Build 1", "Intel MPI 2021.11"),
        ("Some Other MPI 1.0\nmore", "Some Other MPI 1.0"),
    ],
)
def test_mpi_flavours(said: str, flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "said").write_text(said)
    script = tmp_path / "mpirun"
    script.write_text(f"#!/bin/sh\nexec cat {tmp_path}/said\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert mpi_flavour() == flavour


def test_no_mpirun_is_no_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mpi_flavour() is None


def test_cuda_and_nccl_are_found_where_they_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit = tmp_path / "toolkit"
    for file in ("bin/nvcc", "include/cuda_runtime.h", "include/nccl.h"):
        (toolkit / file).parent.mkdir(parents=True, exist_ok=True)
    (toolkit / "bin" / "nvcc").write_text(
        "#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.93'\n"
    )
    (toolkit / "bin" / "nvcc").chmod(0o755)
    (toolkit / "include" / "cuda_runtime.h").touch()
    header = '#define NCCL_MAJOR 2\n#define NCCL_MINOR 27\n#define NCCL_PATCH 5\n#define NCCL_SUFFIX ""\n'
    (toolkit / "include" / "nccl.h").write_text(header)
    monkeypatch.setenv("HOROVOD_CUDA_HOME", str(toolkit))
    monkeypatch.setenv("NCCL_HOME", str(toolkit))
    monkeypatch.setenv("HOROVOD_BUILD_CUDA_CC_LIST", "90")
    assert cuda_home() == toolkit
    assert nccl_home() == toolkit
    found = find_versions()
    assert (found.nvcc, found.nccl, found.cuda_archs) == ("12.8", "2.27.5", "90")


def test_a_wrapper_called_nvcc_is_not_a_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.write_text("#!/bin/sh\nexit 0\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda_home() != tmp_path
