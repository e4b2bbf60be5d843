"""Which launcher carries a job, and its command line: pure functions of the request and the facts."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from hvdtrain.core.errors import LaunchError
from hvdtrain.launch.hosts import Host, format_hosts

if TYPE_CHECKING:
    # The command line would import `packaging` with it before it answers.
    from hvdtrain.launch.facts import Facts

_TUNED = (
    # Idle ranks give their core to those that compute; with more ranks than cores this is three times faster.
    *("--mca", "mpi_yield_when_idle", "1"),
    # Over TCP, Open MPI 4.1 else asks for each part ("put") behind all that it sends itself, and on a slow
    # link the two directions take turns: half as long again.
    *("--mca", "btl_tcp_flags", "send,inplace"),
)
_TRANSPORTS = ("--mca", "pml", "ob1", "--mca", "btl", "^openib")
# What every rank runs under, so that none outlives the job.
GUARD = ("-m", "hvdtrain.launch.rank")
# What a rank on another host needs to find the same programs, libraries and settings.
_EXPORTED = re.compile(
    r"PATH|LD_LIBRARY_PATH|VIRTUAL_ENV|XDG_CACHE_HOME|XLA_FLAGS|TOKENIZERS_PARALLELISM|"
    r"(PYTHON|HOROVOD_|HVDTRAIN_|OMP_|MKL_|KMP_|NCCL_|TF_|TORCH|KERAS_|HF_|CUBLAS_).*"
)


class Launcher(StrEnum):
    """The program that starts the ranks."""

    AUTO = "auto"
    HOROVODRUN = "horovodrun"
    MPIRUN = "mpirun"


class Wire(StrEnum):
    """What coordinates the ranks, and carries their collectives where NCCL does not."""

    AUTO = "auto"
    GLOO = "gloo"
    MPI = "mpi"


@dataclass(frozen=True)
class LaunchRequest:
    """One job to start.

    Args:
        program: what each rank's Python gets, such as `("-m", "hvdtrain.torch.job", "--spec", "bert.yaml")`.
        hosts: hosts with exactly the slots to use; see `take_slots`.
        local: every host is this machine; see `is_local`.
        workdir: directory each rank starts in, the same path on every host.
        launcher: the one to use; `auto` leaves the choice.
        wire: the one to use; `auto` leaves the choice.
        network_interface: name of the interface between the hosts, such as `eth0`; None: found out.
        env: the environment the launcher will run in.
    """

    program: tuple[str, ...]
    hosts: tuple[Host, ...]
    local: bool
    workdir: str
    launcher: Launcher = Launcher.AUTO
    wire: Wire = Wire.AUTO
    network_interface: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def one_host(self) -> bool:
        """True when all ranks share one machine's memory."""
        return self.local or len(self.hosts) == 1


@dataclass(frozen=True)
class LaunchChoice:
    """The launcher and wire to use, and why, in a sentence for the user."""

    launcher: Launcher
    wire: Wire
    why: str


def choose_launch(request: LaunchRequest, facts: Facts) -> LaunchChoice:
    """Picks the fastest launcher and wire for the hosts among those that work here and were not ruled out.

    One host: MPI, whose ranks talk through shared memory, by `mpirun`, which starts seconds earlier than
    horovodrun. Several hosts: Gloo by horovodrun, whose TCP collectives are faster than Open MPI's.

    Args:
        request: the job.
        facts: what this machine can launch with.

    Returns:
        The choice; it honours `request.launcher` and `request.wire`.

    Raises:
        LaunchError: nothing that was asked for works here; the message says why for each possibility.
    """
    mpirun = LaunchChoice(
        Launcher.MPIRUN, Wire.MPI, "ranks on one host talk fastest through MPI's shared memory"
    )
    gloo = LaunchChoice(Launcher.HOROVODRUN, Wire.GLOO, "Gloo is faster than MPI between hosts over TCP")
    mpi = LaunchChoice(Launcher.HOROVODRUN, Wire.MPI, "horovodrun knows this MPI")
    order = (mpirun, mpi, gloo) if request.one_host else (gloo, mpirun, mpi)
    obstacles: list[str] = []
    for choice in order:
        if request.launcher not in (Launcher.AUTO, choice.launcher) or request.wire not in (
            Wire.AUTO,
            choice.wire,
        ):
            continue
        obstacle = _obstacle(choice, facts)
        if obstacle is None:
            return _explain(choice, request, obstacles)
        obstacles.append(f"{choice.launcher} with {choice.wire}: {obstacle}")
    reasons = "; ".join(obstacles) or "mpirun carries MPI; Gloo needs horovodrun"
    raise LaunchError(f"cannot launch: {reasons}")


def build_command(request: LaunchRequest, choice: LaunchChoice, facts: Facts) -> list[str]:
    """Writes the launcher's command line, complete: it runs as it stands from `request.workdir`.

    Args:
        request: the job.
        choice: the launcher and wire, from `choose_launch`.
        facts: what this machine can launch with.

    Returns:
        The arguments, the launcher first.
    """
    if choice.launcher is Launcher.HOROVODRUN:
        return _horovodrun(request, choice, facts)
    return _mpirun(request, facts)


def _obstacle(choice: LaunchChoice, facts: Facts) -> str | None:
    built = facts.horovod_mpi if choice.wire is Wire.MPI else facts.horovod_gloo
    if not built:
        what = f"Horovod is not built with {choice.wire} for {facts.framework}"
        return f"{what} (run `hvdtrain engine build --install`)"
    if choice.launcher is Launcher.HOROVODRUN and facts.horovodrun is None:
        return "horovodrun is neither beside this Python nor on PATH"
    if choice.wire is Wire.MPI and facts.mpirun is None:
        return "mpirun is not on PATH (Debian: apt install openmpi-bin)"
    if choice.launcher is Launcher.MPIRUN and not facts.open_mpi:
        return f"mpirun is {facts.mpi}, and only Open MPI's options are known; horovodrun may know it"
    return None


def _explain(choice: LaunchChoice, request: LaunchRequest, obstacles: list[str]) -> LaunchChoice:
    if (request.launcher, request.wire) != (Launcher.AUTO, Wire.AUTO):
        return replace(choice, why="as asked for")
    return replace(choice, why="; ".join(obstacles)) if obstacles else choice


def _horovodrun(request: LaunchRequest, choice: LaunchChoice, facts: Facts) -> list[str]:
    assert facts.horovodrun is not None
    # horovodrun remembers for an hour which hosts and interfaces it found; networks change sooner.
    command = [facts.horovodrun, "-np", _np(request), "-H", format_hosts(request.hosts), "--disable-cache"]
    command.append(f"--{choice.wire}")
    # With all ranks here Horovod talks over the loopback interface and refuses any other.
    if request.network_interface and not request.local:
        command += ["--network-interfaces", request.network_interface]
    if choice.wire is Wire.MPI and facts.open_mpi:
        command.append("--mpi-args=" + " ".join(_TUNED))
    return command + _python(request, choice.wire, facts)


def _mpirun(request: LaunchRequest, facts: Facts) -> list[str]:
    assert facts.mpirun is not None
    command = [facts.mpirun, "-np", _np(request), "-H", format_hosts(request.hosts)]
    command += ["--bind-to", "none", "--map-by", "slot", "--tag-output", "-wdir", request.workdir]
    if facts.root:
        command.append("--allow-run-as-root")
    command += [*_TRANSPORTS, *_TUNED]
    if request.network_interface and not request.local:
        for layer in ("btl", "oob"):
            command += ["--mca", f"{layer}_tcp_if_include", request.network_interface]
    for setting in _exports(request):
        command += ["-x", setting]
    return command + _python(request, Wire.MPI, facts)


def _exports(request: LaunchRequest) -> Iterable[str]:
    yield "HOROVOD_CONTROLLER=mpi"
    yield "HOROVOD_CPU_OPERATIONS=mpi"
    if not request.local:
        taken = ("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS")
        yield from (name for name in sorted(request.env) if _EXPORTED.fullmatch(name) and name not in taken)


def _python(request: LaunchRequest, wire: Wire, facts: Facts) -> list[str]:
    return [sys.executable, *_guard(wire, facts), *request.program]


def _guard(wire: Wire, facts: Facts) -> tuple[str, ...]:
    # Under mpi4py a rank that raises calls MPI_Abort instead of leaving the others to wait for it.
    return (*GUARD, "-m", "mpi4py") if wire is Wire.MPI and facts.mpi4py else GUARD


def _np(request: LaunchRequest) -> str:
    return str(sum(host.slots for host in request.hosts))
