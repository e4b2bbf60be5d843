from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from hvdtrain.core.errors import LaunchError
from hvdtrain.launch.commands import Launcher, LaunchRequest, Wire, build_command, choose_launch
from hvdtrain.launch.facts import Facts
from hvdtrain.launch.hosts import Host

FULL = Facts(
    framework="torch",
    horovodrun="/env/bin/horovodrun",
    mpirun="/usr/bin/mpirun",
    mpi="Open MPI 4.1.4",
    horovod_mpi=True,
    horovod_gloo=True,
    mpi4py=True,
    root=False,
)
PROGRAM = ("-m", "hvdtrain.torch.job", "--spec", "a file.yaml", "--set", "seed=3")
GUARD = ("-m", "hvdtrain.launch.rank")
ONE = LaunchRequest(PROGRAM, (Host("localhost", 2),), local=True, workdir="/jobs")
REMOTE = replace(ONE, hosts=(Host("node1", 2),), local=False)
TWO = replace(ONE, hosts=(Host("node1", 2), Host("node2", 1)), local=False)


@pytest.mark.parametrize(
    ("request_", "missing", "expected"),
    [
        (ONE, {}, "mpirun mpi"),
        (REMOTE, {}, "mpirun mpi"),
        (TWO, {}, "horovodrun gloo"),
        (ONE, {"horovod_mpi": False}, "horovodrun gloo"),
        (ONE, {"mpirun": None, "mpi": None}, "horovodrun gloo"),
        (ONE, {"mpi": "MPICH 4.0"}, "horovodrun mpi"),
        (ONE, {"horovodrun": None}, "mpirun mpi"),
        (TWO, {"horovod_gloo": False}, "mpirun mpi"),
        (TWO, {"horovodrun": None}, "mpirun mpi"),
        (TWO, {"horovod_gloo": False, "mpi": "Intel MPI 2021.9"}, "horovodrun mpi"),
        (replace(ONE, launcher=Launcher.HOROVODRUN), {}, "horovodrun mpi"),
        (replace(ONE, launcher=Launcher.HOROVODRUN), {"horovod_mpi": False}, "horovodrun gloo"),
        (replace(ONE, wire=Wire.GLOO), {}, "horovodrun gloo"),
        (replace(TWO, wire=Wire.MPI), {}, "mpirun mpi"),
        (replace(TWO, launcher=Launcher.MPIRUN), {}, "mpirun mpi"),
        (replace(TWO, launcher=Launcher.HOROVODRUN, wire=Wire.MPI), {}, "horovodrun mpi"),
    ],
)
def test_choice(request_: LaunchRequest, missing: dict[str, object], expected: str) -> None:
    choice = choose_launch(request_, replace(FULL, **missing))
    assert f"{choice.launcher} {choice.wire}" == expected
    assert choice.why


def test_choice_says_what_stood_in_the_way() -> None:
    choice = choose_launch(ONE, replace(FULL, horovod_mpi=False))
    assert "not built with mpi for torch" in choice.why


@pytest.mark.parametrize(
    ("request_", "missing", "complaints"),
    [
        (replace(ONE, launcher=Launcher.MPIRUN, wire=Wire.GLOO), {}, ["Gloo needs horovodrun"]),
        (replace(ONE, launcher=Launcher.MPIRUN), {"mpirun": None}, ["apt install openmpi-bin"]),
        (replace(ONE, launcher=Launcher.MPIRUN), {"mpi": "MPICH 4.0"}, ["mpirun is MPICH 4.0"]),
        (replace(ONE, wire=Wire.GLOO), {"horovod_gloo": False}, ["hvdtrain engine build"]),
        (ONE, {"mpirun": None, "horovodrun": None}, ["mpirun is not on PATH", "horovodrun is neither"]),
    ],
)
def test_impossible_launches_say_why(
    request_: LaunchRequest, missing: dict[str, object], complaints: list[str]
) -> None:
    with pytest.raises(LaunchError) as error:
        choose_launch(request_, replace(FULL, **missing))
    assert all(complaint in str(error.value) for complaint in complaints)


def command(request: LaunchRequest, facts: Facts = FULL) -> list[str]:
    return build_command(request, choose_launch(request, facts), facts)


def after(arguments: list[str], option: str) -> list[str]:
    return [arguments[at + 1] for at, argument in enumerate(arguments) if argument == option]


def test_mpirun_on_one_host() -> None:
    line = command(ONE)
    assert line[0] == "/usr/bin/mpirun"
    assert (after(line, "-np"), after(line, "-H"), after(line, "-wdir")) == (
        ["2"],
        ["localhost:2"],
        ["/jobs"],
    )
    assert (after(line, "--bind-to"), after(line, "--map-by")) == (["none"], ["slot"])
    assert after(line, "mpi_yield_when_idle") == ["1"]
    assert after(line, "btl_tcp_flags") == ["send,inplace"]
    assert "--allow-run-as-root" not in line
    assert line[-len(PROGRAM) - 5 :] == [sys.executable, *GUARD, "-m", "mpi4py", *PROGRAM]
    assert line[-len(PROGRAM) - 6] == "HOROVOD_CPU_OPERATIONS=mpi"


def test_mpirun_between_hosts_exports_the_environment() -> None:
    env = dict.fromkeys(
        ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "HOROVOD_LOG_LEVEL"), "x"
    )
    others = dict.fromkeys(("HOME", "SSH_AUTH_SOCK", "HOSTNAME", "SLURM_JOB_ID", "HOROVOD_CONTROLLER"), "x")
    request = replace(TWO, launcher=Launcher.MPIRUN, network_interface="eth1", env=env | others)
    line = command(request, replace(FULL, root=True))
    assert after(line, "-H") == ["node1:2,node2:1"]
    assert after(line, "-np") == ["3"]
    assert set(after(line, "-x")) == {"HOROVOD_CONTROLLER=mpi", "HOROVOD_CPU_OPERATIONS=mpi", *env}
    assert after(line, "btl_tcp_if_include") == after(line, "oob_tcp_if_include") == ["eth1"]
    assert "--allow-run-as-root" in line


def test_mpirun_without_mpi4py_runs_the_program_alone() -> None:
    line = command(ONE, replace(FULL, mpi4py=False))
    assert line[-len(PROGRAM) - 3 :] == [sys.executable, *GUARD, *PROGRAM]


def test_horovodrun_over_gloo() -> None:
    line = command(replace(TWO, network_interface="eth1"))
    assert line == [
        *("/env/bin/horovodrun", "-np", "3", "-H", "node1:2,node2:1", "--disable-cache", "--gloo"),
        *("--network-interfaces", "eth1", sys.executable, *GUARD, *PROGRAM),
    ]
    assert command(replace(ONE, wire=Wire.GLOO))[-len(PROGRAM) - 3 :] == [sys.executable, *GUARD, *PROGRAM]


def test_horovodrun_over_mpi_is_given_the_same_settings() -> None:
    request = replace(ONE, launcher=Launcher.HOROVODRUN, network_interface="eth1")
    line = command(request)
    assert "--mpi" in line
    assert "--mpi-args=--mca mpi_yield_when_idle 1 --mca btl_tcp_flags send,inplace" in line
    assert "eth1" not in line  # Horovod refuses anything but loopback when all hosts are local
    other = command(request, replace(FULL, mpi="MPICH 4.0"))
    assert not any(argument.startswith("--mpi-args") for argument in other)
