"""What a Horovod build depends on, found without importing a framework."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from packaging.version import Version

HOROVOD_VERSION = "0.28.1"

_TENSORFLOW_DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly")


@dataclass(frozen=True)
class Versions:
    """The versions of everything a Horovod wheel is compiled against; None is what is not there.

    Attributes:
        python: interpreter and machine, such as `cp311-x86_64`.
        compiler: first line of `g++ --version`.
        torch: installed torch, local part included (`2.13.0+cpu`).
        torch_cuda: the CUDA that this torch was built for.
        tensorflow: installed TensorFlow.
        tensorflow_cuda: the CUDA that this TensorFlow was built for (its plain wheels are CUDA builds).
        mpi: flavour and version, when C++ can be compiled against it.
        nvcc: version of the CUDA compiler.
        nccl: version in the NCCL header.
        cuda_archs: compute capabilities to build for, `80,90`; None for the default.
    """

    python: str
    compiler: str | None = None
    torch: str | None = None
    torch_cuda: str | None = None
    tensorflow: str | None = None
    tensorflow_cuda: str | None = None
    mpi: str | None = None
    nvcc: str | None = None
    nccl: str | None = None
    cuda_archs: str | None = None

    def torch_at_least(self, version: str) -> bool:
        """Whether torch is there and at least `version`."""
        return self.torch is not None and Version(self.torch).release >= Version(version).release

    def tensorflow_at_least(self, version: str) -> bool:
        """Whether TensorFlow is there and at least `version`."""
        return self.tensorflow is not None and Version(self.tensorflow).release >= Version(version).release

    @property
    def frameworks(self) -> tuple[str, ...]:
        """The frameworks to build for, by import name."""
        return tuple(name for name in ("torch", "tensorflow") if getattr(self, name))

    @property
    def nccl_obstacle(self) -> str | None:
        """Why Horovod cannot be built with NCCL for these versions; None when it can."""
        if self.nvcc is None:
            return "no CUDA compiler (nvcc): install the CUDA toolkit, or set CUDA_HOME to where it is"
        for name in self.frameworks:
            cuda = getattr(self, f"{name}_cuda")
            if cuda is None:
                return f"{name} {getattr(self, name)} is a CPU build"
            if Version(cuda).major != Version(self.nvcc).major:
                return (
                    f"{name} is built for CUDA {cuda} and nvcc is {self.nvcc}: "
                    "one build needs one CUDA major version (torch and TensorFlow may need two environments)"
                )
        if self.nccl is None:
            return "no NCCL headers: `pip install nvidia-nccl-cu12` (or -cu13), or set NCCL_HOME"
        return None if self.frameworks else "no framework"

    @property
    def with_nccl(self) -> bool:
        """Whether the build includes NCCL, and with it collectives on GPU tensors."""
        return self.nccl_obstacle is None

    def key(self, recipe: str) -> str:
        """The name of a build in the cache.

        Args:
            recipe: whatever else decides what is built: the text of the edits.

        Returns:
            Short readable versions and a digest of all of them.
        """
        text = json.dumps([HOROVOD_VERSION, asdict(self._compiled_against()), recipe], sort_keys=True)
        parts = [HOROVOD_VERSION, self.python, f"torch{self.torch}" if self.torch else ""]
        parts += [f"tf{self.tensorflow}" if self.tensorflow else "", "nccl" if self.with_nccl else ""]
        return "-".join([*filter(None, parts), hashlib.sha256(text.encode()).hexdigest()[:12]])

    def _compiled_against(self) -> Versions:
        """These versions without what is on the machine and has no part in the build."""
        if self.with_nccl:
            return self
        if self.torch_cuda and self.nvcc:
            return replace(self, nccl=None, tensorflow_cuda=None)
        return replace(self, nccl=None, tensorflow_cuda=None, nvcc=None, cuda_archs=None)


def find_versions(with_mpi: bool = True) -> Versions:
    """Looks at the running interpreter's environment and at the machine.

    Args:
        with_mpi: False leaves MPI out of the build even when it is there.
    """
    return Versions(
        python=f"{sys.implementation.cache_tag.replace('cpython-', 'cp')}-{platform.machine()}",
        compiler=_first_line("g++", "--version"),
        torch=torch_version(),
        torch_cuda=_search(package_dir("torch"), "version.py", r"^cuda\b[^=]*= *'([\d.]+)'"),
        tensorflow=tensorflow_version(),
        tensorflow_cuda=_tensorflow_cuda(),
        mpi=mpi_flavour() if with_mpi and shutil.which("mpicxx") else None,
        nvcc=_nvcc_version(),
        nccl=_nccl_version(),
        cuda_archs=os.environ.get("HOROVOD_BUILD_CUDA_CC_LIST"),
    )


def torch_version() -> str | None:
    """The installed torch, local part included, or None.

    Its wheel's metadata may lack the local part (`+cu130`), which torch itself and Horovod's build go by.
    """
    own = _search(package_dir("torch"), "version.py", r"^__version__[^=]*= *'([^']+)'")
    return own or distribution_version("torch")


def tensorflow_version() -> str | None:
    """The installed TensorFlow under whichever distribution name, or None."""
    return next(filter(None, map(distribution_version, _TENSORFLOW_DISTRIBUTIONS)), None)


def distribution_version(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def mpi_flavour() -> str | None:
    """Name and version of the MPI whose `mpirun` is on the path, such as `Open MPI 4.1.4`, or None."""
    text = _output("mpirun", "--version")
    if text is None:
        return None
    for name, pattern in (
        ("Open MPI", r"\(Open MPI\) ([\w.]+)"),
        ("Intel MPI", r"Intel\(R\) MPI Library.*?Version ([\w.]+)"),
        ("MPICH", r"HYDRA build details:\s+Version:\s+([\w.]+)"),
    ):
        if match := re.search(pattern, text, re.DOTALL):
            return f"{name} {match[1]}"
    return text.strip().splitlines()[0] if text.strip() else None


def cuda_home() -> Path | None:
    """The CUDA toolkit: $HOROVOD_CUDA_HOME, $CUDA_HOME, where the path's nvcc lies, or /usr/local/cuda."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("HOROVOD_CUDA_HOME"), os.environ.get("CUDA_HOME")]
    candidates += [str(Path(nvcc).resolve().parent.parent) if nvcc else None, "/usr/local/cuda"]
    # The nvcc on the path may be a wrapper script that lies elsewhere than its toolkit.
    parts = ("bin/nvcc", "include/cuda_runtime.h")
    return next((Path(c) for c in candidates if c and all(Path(c, part).exists() for part in parts)), None)


def nccl_home() -> Path | None:
    """The folder whose include/ holds nccl.h: $NCCL_HOME, the pip package's, the toolkit's, or /usr."""
    spec = importlib.util.find_spec("nvidia")
    pip_homes = [Path(p, "nccl") for p in spec.submodule_search_locations or ()] if spec else []
    candidates = [os.environ.get("HOROVOD_NCCL_HOME"), os.environ.get("NCCL_HOME"), *pip_homes]
    candidates += [cuda_home(), "/usr"]
    return next((Path(c) for c in candidates if c and Path(c, "include", "nccl.h").exists()), None)


def package_dir(name: str) -> Path | None:
    """The folder of an installed top-level package, found without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _tensorflow_cuda() -> str | None:
    build_info = "python/platform/build_info.py"
    return _search(package_dir("tensorflow"), build_info, r"'cuda_version'[,:] *'([\d.]+)'")


def _nvcc_version() -> str | None:
    home = cuda_home()
    text = _output(str(home / "bin" / "nvcc"), "--version") if home else None
    match = re.search(r"release ([\d.]+)", text or "")
    return match[1] if match else None


def _nccl_version() -> str | None:
    home = nccl_home()
    if home is None:
        return None
    parts = [
        _search(home, "include/nccl.h", rf"^#define NCCL_{p}\s+(\d+)") for p in ("MAJOR", "MINOR", "PATCH")
    ]
    return ".".join(part or "0" for part in parts)


def _search(folder: Path | None, file: str, pattern: str) -> str | None:
    path = folder / file if folder else None
    if path is None or not path.exists():
        return None
    match = re.search(pattern, path.read_text(errors="replace"), re.MULTILINE)
    return match[1] if match else None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError:
        return None
    return done.stdout + done.stderr


def _first_line(*command: str) -> str | None:
    return (_output(*command) or "").partition("\n")[0] or None
