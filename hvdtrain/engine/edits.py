"""What has to change in Horovod's sources for today's frameworks: each edit small, each with its reason."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from hvdtrain.engine.codec_edits import CODEC_EDITS
from hvdtrain.engine.edit import Edit, patch
from hvdtrain.engine.gloo_edits import GLOO_EDITS
from hvdtrain.engine.launcher_edits import LAUNCHER_EDITS
from hvdtrain.engine.security_edits import SECURITY_EDITS
from hvdtrain.engine.service_edits import SERVICE_EDITS
from hvdtrain.engine.versions import HOROVOD_VERSION, Versions
from hvdtrain.engine.wake_edits import WAKE_EDITS
from hvdtrain.engine.wire_edits import WIRE_EDITS

RECORD_FILE = "hvdtrain_engine.json"
# Raised with every change of the edits: a test knows their digest.
REVISION = 1
# As a wheel and `horovod.__version__` say it; `horovod==0.28.1` asks for any revision.
EDITED_VERSION = f"{HOROVOD_VERSION}+hvdtrain.{REVISION}"


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
        patch("tf_stream_handle.old.cc"),
        patch("tf_stream_handle.new.cc"),
        "TensorFlow 2.21 dropped AsGpuStreamValue: the build succeeds without this and fails when loaded",
        lambda v: v.tensorflow_at_least("2.21") and v.with_nccl,
    ),
    Edit(
        "string-header",
        "horovod/common/group_table.h",
        "#include <queue>\n",
        "#include <queue>\n#include <string>\n",
        "from gcc 13 on no other header brings it along",
    ),
    Edit(
        "exceptions-header",
        "horovod/common/common.h",
        "#include <memory>\n#include <string>\n",
        "#include <memory>\n#include <stdexcept>\n#include <string>\n",
        "from gcc 13 on no other header brings it along",
    ),
    Edit(
        "nccl-soname",
        "cmake/Modules/FindNCCL.cmake",
        'set(NCCL_LIBNAME "nccl")',
        "set(NCCL_LIBNAME nccl libnccl.so.2)",
        "NCCL's pip package holds libnccl.so.2 and no libnccl.so",
    ),
    Edit(
        "nccl-of-headers",
        "cmake/Modules/FindNCCL.cmake",
        "        NAMES ${NCCL_LIBNAME}\n",
        "        NAMES ${NCCL_LIBNAME} NAMES_PER_DIR\n",
        "a libnccl.so of the system's is found before the libnccl.so.2 that the headers belong to",
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
    Edit(
        "stamp",
        "horovod/__init__.py",
        f"__version__ = '{HOROVOD_VERSION}'\n",
        f"__version__ = '{EDITED_VERSION}'\n",
        "what is installed has to say that it is not Horovod as released",
    ),
    Edit(
        "stamp-metadata",
        "setup.py",
        "fast and easy to use.'''),\n",
        "fast and easy to use.''') + edits_of_hvdtrain(),\n",
        "the wheel's metadata has to list what was changed",
    ),
    Edit(
        "stamp-list",
        "setup.py",
        "setup(name='horovod',\n",
        patch("stamp_list.py.txt") + "setup(name='horovod',\n",
        "the wheel's metadata has to list what was changed",
    ),
    *WIRE_EDITS,
    *CODEC_EDITS,
    *WAKE_EDITS,
    *GLOO_EDITS,
    *SECURITY_EDITS,
    *SERVICE_EDITS,
    *LAUNCHER_EDITS,
)
