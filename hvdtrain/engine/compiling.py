"""Runs Horovod's own build, shows how far it is, and says what went wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
from packaging.version import Version

from hvdtrain.core.errors import EngineError
from hvdtrain.engine.versions import Versions, cuda_home, nccl_home

# A compiler process on the frameworks' headers takes up to this much.
_BYTES_PER_JOB = 2 << 30
_HOROVOD_NAMES = {"torch": "PYTORCH", "tensorflow": "TENSORFLOW"}


def build_environment(versions: Versions) -> dict[str, str]:
    """The environment variables that make Horovod's build do what `versions` says, and nothing else."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_")}
    env |= {"HOROVOD_WITHOUT_MXNET": "1", "HOROVOD_WITH_GLOO": "1", "MAKEFLAGS": f"-j{_jobs()}"}
    env["HOROVOD_WITH_MPI" if versions.mpi else "HOROVOD_WITHOUT_MPI"] = "1"
    for name, theirs in _HOROVOD_NAMES.items():
        env[f"HOROVOD_{'WITH' if name in versions.frameworks else 'WITHOUT'}_{theirs}"] = "1"
    cuda = cuda_home()
    if (cuda and versions.torch_cuda) or versions.with_nccl:
        env |= _cuda_environment(versions, env["PATH"])
    return env


def compile_wheel(
    source: Path, folder: Path, env: dict[str, str], log: Path, say: Callable[[str], None]
) -> Path:
    """Builds the wheel from edited sources.

    Args:
        source: the sources; also where the build leaves its objects.
        folder: where the wheel goes.
        env: see `build_environment`.
        log: is given the whole output.
        say: shown how far the build is, a line at a time.

    Raises:
        EngineError: the build fails; the message holds the first errors and where the log is.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "setup.py", "--verbose", "bdist_wheel", "--dist-dir", str(folder)]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=source, env=env, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        shown = 0
        for line in process.stdout:
            out.write(line)
            shown = _show_progress(line, shown, say)
        status = process.wait()
    wheels = sorted(folder.glob("horovod-*.whl"))
    if status or not wheels:
        raise EngineError(f"Horovod does not build:\n{first_errors(log.read_text())}\nThe whole log: {log}")
    return wheels[0]


def first_errors(log: str, most: int = 8) -> str:
    """The first lines of a build log that say what is wrong, else its last lines."""
    lines = log.splitlines()
    errors = [line for line in lines if re.search(r"\berror\b[: ]|CMake Error|Error:|fatal", line)]
    # What make says on its way out only repeats that something failed.
    errors = [line for line in errors if not line.lstrip().startswith(("make", "gmake"))]
    return "\n".join(errors[:most] or lines[-most:])


def load_check(wheel: Path, frameworks: tuple[str, ...], folder: Path) -> None:
    """Loads each framework's library out of the wheel in a process of its own.

    Some faults (a symbol that a framework no longer has) only show then; such a wheel must not be kept.

    Raises:
        EngineError: one does not load.
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for name in frameworks:
        env = os.environ | {"PYTHONPATH": str(folder), "TF_CPP_MIN_LOG_LEVEL": "2"}
        code = f"import horovod.{name} as hvd; hvd.gloo_built()"
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-4:])
            raise EngineError(
                f"Horovod was built for {name}, but does not load (status {done.returncode}):\n{last}"
            )
    shutil.rmtree(folder)


def _cuda_environment(versions: Versions, path: str) -> dict[str, str]:
    home = cuda_home()
    env = {"CUDA_HOME": str(home), "HOROVOD_CUDA_HOME": str(home), "PATH": f"{home}/bin{os.pathsep}{path}"}
    env["HOROVOD_BUILD_CUDA_CC_LIST"] = versions.cuda_archs or _default_archs(versions)
    if versions.with_nccl:
        env |= {
            "HOROVOD_GPU_OPERATIONS": "NCCL",
            "HOROVOD_NCCL_HOME": str(nccl_home()),
            "HOROVOD_NCCL_LINK": "SHARED",
        }
    return env


def _default_archs(versions: Versions) -> str:
    """Volta, Ampere and Hopper; CUDA 13 no longer compiles for Volta, and does for Blackwell."""
    return "80,90,100" if versions.nvcc and Version(versions.nvcc).major >= 13 else "70,80,90"


def _jobs() -> int:
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, int(psutil.virtual_memory().available // _BYTES_PER_JOB)))


def _show_progress(line: str, shown: int, say: Callable[[str], None]) -> int:
    """Says so every tenth of the way; make's percentages begin again with nothing."""
    match = re.match(r"\[ *(\d+)%\]", line)
    if match and int(match[1]) >= shown + 10:
        shown = int(match[1]) // 10 * 10
        say(f"{shown}%")
    return shown
