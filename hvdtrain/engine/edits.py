"""What has to change in Horovod's sources for today's frameworks: each edit small, each with its reason."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from hvdtrain.core.errors import EngineError
from hvdtrain.engine.versions import HOROVOD_VERSION, Versions

RECORD_FILE = "hvdtrain_engine.json"


def _always(_: Versions) -> bool:
    return True


@dataclass(frozen=True)
class Edit:
    """One replacement in one file.

    Attributes:
        name: how messages call it.
        file: path inside the source distribution.
        anchor: text that must be there exactly once.
        replacement: what stands there afterwards.
        why: what breaks without it.
        applies: which versions need it.
    """

    name: str
    file: str
    anchor: str
    replacement: str
    why: str
    applies: Callable[[Versions], bool] = _always

    def apply(self, source: Path) -> None:
        """Edits the file under `source`.

        Args:
            source: the unpacked source distribution.

        Raises:
            EngineError: the file is missing, or the anchor is not there exactly once.
        """
        path = source / self.file
        if not path.is_file():
            raise EngineError(f"edit {self.name!r}: {self.file} is not in these sources; {_EXPECTED}")
        text = path.read_text()
        count = text.count(self.anchor)
        if count != 1:
            first = self.anchor.strip().splitlines()[0]
            raise EngineError(
                f"edit {self.name!r}: {self.file} holds the text to replace {count} times instead of once "
                f"(it starts with {first!r}); {_EXPECTED}"
            )
        path.write_text(text.replace(self.anchor, self.replacement))


def edits_for(versions: Versions) -> tuple[Edit, ...]:
    """The edits that a build for these versions needs, in the order they are applied."""
    return tuple(edit for edit in EDITS if edit.applies(versions))


def apply_edits(edits: Iterable[Edit], source: Path) -> None:
    """Applies each edit to the unpacked sources.

    Raises:
        EngineError: one does not fit; it is named, and the sources are not to be used.
    """
    for edit in edits:
        edit.apply(source)


def recipe_digest(edits: Iterable[Edit]) -> str:
    """A digest of what the edits change, for the cache: a changed edit is a new build."""
    texts = [f"{edit.file}\0{edit.anchor}\0{edit.replacement}" for edit in edits]
    return hashlib.sha256("\0\0".join(texts).encode()).hexdigest()


def _patch(name: str) -> str:
    """A text that is too long to stand in this file."""
    return (files("hvdtrain.engine") / "patches" / name).read_text()


_EXPECTED = f"expected the untouched sources of Horovod {HOROVOD_VERSION}"

EDITS = (
    Edit(
        "core-cxx17",
        "CMakeLists.txt",
        "set(CMAKE_CXX_STANDARD 14)",
        "set(CMAKE_CXX_STANDARD 17)",
        "the headers of current frameworks refuse C++14",
    ),
    Edit(
        "torch-cxx17",
        "horovod/torch/CMakeLists.txt",
        "set(CMAKE_CXX_STANDARD 14)",
        "set(CMAKE_CXX_STANDARD 17)",
        "torch's headers need C++17",
        lambda v: not v.torch_at_least("2.14"),
    ),
    Edit(
        "torch-cxx20",
        "horovod/torch/CMakeLists.txt",
        "set(CMAKE_CXX_STANDARD 14)",
        "set(CMAKE_CXX_STANDARD 20)",
        "torch's headers need C++20 from 2.14 on",
        lambda v: v.torch_at_least("2.14"),
    ),
    Edit(
        "torch-python-headers",
        "horovod/torch/CMakeLists.txt",
        "from distutils.sysconfig import get_python_inc; print(get_python_inc())",
        "import sysconfig; print(sysconfig.get_path('include'))",
        "Python 3.12 has no distutils",
    ),
    Edit(
        "jsrun-which",
        "horovod/runner/js_run.py",
        "from distutils.spawn import find_executable",
        "from shutil import which as find_executable",
        "Python 3.12 has no distutils, and horovodrun imports this file",
    ),
    Edit(
        "no-xla-ops",
        "horovod/tensorflow/CMakeLists.txt",
        'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n',
        "",
        "XLA's headers do not compile as TensorFlow's wheel holds them; only jit on GPU uses these ops",
    ),
    Edit(
        "tf-stream-handle",
        "horovod/tensorflow/mpi_ops.cc",
        _patch("tf_stream_handle.old.cc"),
        _patch("tf_stream_handle.new.cc"),
        "TensorFlow 2.21 dropped AsGpuStreamValue: the build succeeds without this and fails when loaded",
        lambda v: v.tensorflow_at_least("2.21") and v.with_nccl,
    ),
    Edit(
        "nccl-soname",
        "cmake/Modules/FindNCCL.cmake",
        'set(NCCL_LIBNAME "nccl")',
        "set(NCCL_LIBNAME nccl libnccl.so.2)",
        "NCCL's pip package holds libnccl.so.2 and no libnccl.so",
    ),
    Edit(
        "cuda-driver-soname",
        "horovod/torch/cuda_util.cc",
        'cudalib = dlopen("libcuda.so", RTLD_LAZY);\n',
        'cudalib = dlopen("libcuda.so.1", RTLD_LAZY);\n'
        '  if (!cudalib) cudalib = dlopen("libcuda.so", RTLD_LAZY);\n',
        "machines with only the driver's run-time package have no libcuda.so",
    ),
    Edit(
        "gloo-cmake4",
        "third_party/gloo/CMakeLists.txt",
        "cmake_minimum_required(VERSION 2.8.12 FATAL_ERROR)",
        "cmake_minimum_required(VERSION 3.5 FATAL_ERROR)",
        "CMake 4 refuses projects that ask for less than 3.5",
    ),
    Edit(
        "verbose-any-generator",
        "setup.py",
        "        if self.verbose:\n            make_args.append('VERBOSE=1')\n\n"
        "        cmake_build_args = ['--config', config]\n",
        "        cmake_build_args = ['--config', config] + (['--verbose'] if self.verbose else [])\n",
        "Ninja takes VERBOSE=1 for a target",
    ),
    Edit(
        "no-debug-information",
        "setup.py",
        "else 'RelWithDebInfo'",
        "else 'Release'",
        "debug information makes the wheel four times as large and the build slower",
    ),
    Edit(
        "carry-record",
        "setup.py",
        "packages=find_packages(),",
        f"packages=find_packages(), package_data={{'horovod': ['{RECORD_FILE}']}},",
        "the installed package has to say what it was built from",
    ),
)
