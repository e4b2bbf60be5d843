"""Who takes part, how each one's ranks are started, and which model they train."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hvdtrain.core.spec.job_spec import JobSpec, load_spec
from hvdtrain.launch.commands import Launcher, LaunchRequest, Wire, build_command, choose_launch
from hvdtrain.launch.facts import find_facts
from hvdtrain.launch.hosts import Host

RANKS = 2
Framework = Literal["torch", "tensorflow"]
Model = Literal["default", "medium", "gpt2"]

# Common to all: one compute thread a rank, a constant learning rate (each library has schedules of its own).
_COMMON = ("num_threads=1", "schedule.type=constant", "schedule.warmup_steps=0")
_MODELS: dict[Model, tuple[str, ...]] = {
    "default": (),
    "medium": ("model.vocab_size=8192", "model.hidden_size=256", "model.intermediate_size=1024"),
    "gpt2": (),
}


@dataclass(frozen=True)
class Competitor:
    """One way to train.

    Attributes:
        name: in tables and on the worker's command line.
        framework: whose ranks it runs.
        role: the function of `torch_steps` or `tensorflow_steps` that builds its step.
        wire: of Horovod; None for those who do not use it.
        cycle_time_ms: Horovod's, None for the default of whoever starts it.
        linked: whether its ranks exchange gradients; if not, they only keep each other's core company.
        settings: overrides of the job that all train.
    """

    name: str
    framework: Framework
    role: str
    wire: Wire | None = None
    cycle_time_ms: float | None = None
    linked: bool = True
    settings: tuple[str, ...] = ()

    @property
    def works_while_waiting(self) -> bool:
        """Horovod's background thread negotiates every cycle, also when nothing is trained."""
        return self.wire is not None


def competitors(framework: Framework) -> tuple[Competitor, ...]:
    """The competitors of a framework; the first is this project's Trainer, the others' measure."""
    native = {
        "torch": Competitor("PyTorch DDP (Gloo)", "torch", "ddp"),
        "tensorflow": Competitor("MultiWorkerMirroredStrategy", "tensorflow", "mirrored"),
    }
    return (
        Competitor("hvdtrain (MPI)", framework, "hvdtrain", Wire.MPI),
        Competitor("hvdtrain (Gloo)", framework, "hvdtrain", Wire.GLOO),
        Competitor("stock Horovod (MPI)", framework, "stock", Wire.MPI),
        Competitor("stock Horovod (MPI, cycle 10 ms)", framework, "stock", Wire.MPI, 10.0),
        native[framework],
        Competitor("two unconnected processes (limit)", framework, "alone", linked=False),
    )


def wrappers(framework: Framework) -> tuple[Competitor, ...]:
    """For a loop of the user's own: this project's wrapper, and what it stands in for."""
    ours = [Competitor("hvdtrain's wrapper (MPI)", framework, "wrapper", Wire.MPI)]
    if framework == "tensorflow":
        ours.append(Competitor("hvdtrain.keras' wrapper (MPI)", framework, "keras_wrapper", Wire.MPI))
    return (
        *ours,
        Competitor("stock Horovod (MPI)", framework, "stock", Wire.MPI),
        Competitor("two unconnected processes (limit)", framework, "alone", linked=False),
    )


def sharded(framework: Framework) -> tuple[Competitor, ...]:
    """This project's Trainer with each `zero_stage`, over MPI and over Gloo, and PyTorch's FSDP2."""
    stages = [
        Competitor(f"stage {stage} ({name})", framework, "hvdtrain", wire, settings=(f"zero_stage={stage}",))
        for wire, name in ((Wire.MPI, "MPI"), (Wire.GLOO, "Gloo"))
        for stage in range(4)
    ]
    fsdp = Competitor("PyTorch FSDP2 (Gloo)", framework, "fsdp")
    return (*stages, fsdp) if framework == "torch" else tuple(stages)


def model_spec(model: Model, settings: Sequence[str] = ()) -> JobSpec:
    """The job all competitors train.

    Args:
        model: the packaged BERT, its medium size (4 x 256, vocabulary 8192), or the packaged GPT-2.
        settings: overrides of one competitor.
    """
    return load_spec("gpt2" if model == "gpt2" else "bert", (*_COMMON, *_MODELS[model], *settings))


@dataclass(frozen=True)
class Start:
    """A command that starts ranks, and its environment."""

    command: list[str]
    env: dict[str, str]


def starts(competitor: Competitor, model: Model, folder: Path, meeting: Path) -> list[Start]:
    """The commands that start a competitor's ranks: one launcher, or one command a rank.

    Args:
        competitor: who.
        model: what is trained.
        folder: a directory of this competitor alone, for files its ranks find each other by.
        meeting: the socket on which each rank reports.

    Returns:
        What to start, all at the same time.
    """
    who = competitor.framework, competitor.role, model, str(meeting), *competitor.settings
    program = ("-m", "side_by_side.worker", *who)
    env = _environment(competitor)
    if competitor.wire is not None:
        return [Start(_launcher_command(competitor, program, env), env)]
    by_rank = [{"RANK": str(rank), "WORLD_SIZE": str(RANKS)} for rank in range(RANKS)]
    if competitor.role in ("ddp", "fsdp"):
        by_rank = [{**own, "MEETING_FILE": str(folder / "ranks")} for own in by_rank]
    elif competitor.role == "mirrored":
        workers = [f"localhost:{port}" for port in _free_ports(RANKS)]
        by_rank = [{**own, "TF_CONFIG": _tf_config(workers, rank)} for rank, own in enumerate(by_rank)]
    return [Start([sys.executable, *program], {**env, **own}) for own in by_rank]


def _environment(competitor: Competitor) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_")}
    here = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (here, env.get("PYTHONPATH"))))
    env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TF_CPP_MIN_LOG_LEVEL": "2"}
    # A stopped rank must not look like a dead one.
    env["HOROVOD_GLOO_TIMEOUT_SECONDS"] = "36000"
    if competitor.cycle_time_ms is not None:
        env["HOROVOD_CYCLE_TIME"] = str(competitor.cycle_time_ms)
    return env


def _launcher_command(competitor: Competitor, program: tuple[str, ...], env: Mapping[str, str]) -> list[str]:
    assert competitor.wire is not None
    request = LaunchRequest(
        program=program,
        hosts=(Host("localhost", RANKS),),
        local=True,
        workdir=str(Path.cwd()),
        launcher=Launcher.MPIRUN if competitor.wire is Wire.MPI else Launcher.HOROVODRUN,
        wire=competitor.wire,
        env=env,
    )
    facts = find_facts(competitor.framework)
    return build_command(request, choose_launch(request, facts), facts)


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def _tf_config(workers: list[str], rank: int) -> str:
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}})
