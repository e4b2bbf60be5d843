"""What this machine can launch with, found without importing a framework."""

from __future__ import annotations

import importlib.util
import mmap
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from hvdtrain.engine.versions import mpi_flavour, package_dir

# Names of C++ classes that are compiled into Horovod's library only with the feature; asking Horovod itself
# imports the framework and takes seconds.
_MPI_MARK = b"13MPIController"
_GLOO_MARK = b"14GlooController"


@dataclass(frozen=True)
class Facts:
    """What a launch can be chosen from.

    Args:
        framework: `torch` or `tensorflow`, the one Horovod's features below are for.
        horovodrun: path of Horovod's launcher, or None.
        mpirun: path of MPI's launcher, or None.
        mpi: flavour and version of that MPI, such as `Open MPI 4.1.4`, or None.
        horovod_mpi: Horovod was built with MPI for this framework.
        horovod_gloo: Horovod was built with Gloo for this framework.
        mpi4py: mpi4py can be imported, so that a rank that raises can abort the others.
        root: this process runs as root, which Open MPI refuses unless told otherwise.
    """

    framework: str
    horovodrun: str | None
    mpirun: str | None
    mpi: str | None
    horovod_mpi: bool
    horovod_gloo: bool
    mpi4py: bool
    root: bool

    @property
    def open_mpi(self) -> bool:
        """True when the MPI is Open MPI, the one whose options are known here."""
        return self.mpi is not None and self.mpi.startswith("Open MPI")


def find_facts(framework: str) -> Facts:
    """Looks at the path, at the installed Horovod's files and at who runs this.

    Args:
        framework: `torch` or `tensorflow`.
    """
    mpirun = shutil.which("mpirun")
    return Facts(
        framework=framework,
        horovodrun=_beside_python("horovodrun"),
        mpirun=mpirun,
        mpi=mpi_flavour() if mpirun else None,
        horovod_mpi=_horovod_contains(framework, _MPI_MARK),
        horovod_gloo=_horovod_contains(framework, _GLOO_MARK),
        mpi4py=importlib.util.find_spec("mpi4py") is not None,
        root=os.geteuid() == 0,
    )


def _beside_python(name: str) -> str | None:
    """A script of this environment, also when the environment is not activated."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _horovod_contains(framework: str, mark: bytes) -> bool:
    home = package_dir("horovod")
    libraries = home.glob(f"{framework}/mpi_lib*.so") if home else ()
    return any(_file_contains(library, mark) for library in libraries)


def _file_contains(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(mark) >= 0
