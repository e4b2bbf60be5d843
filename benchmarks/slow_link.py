"""Step times of compression policies between two emulated hosts with a slow link between them.

Beside each the time that cannot be beaten: computing alone, in turns with it, or sending the bytes as fast as
a bare TCP connection does, whichever is longer. The latency of collectives that wait for each other is taken
off first. Needs root, iproute2 and openssh-server. See docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quality import POLICIES
from turns import Group, Line, started, take_turns

from hvdtrain.core.tables import Kind, make_table, print_table
from hvdtrain.launch.processes import handle_signals
from tests.launch.cluster import Cluster, emulated_hosts

_BINARIES = Path(sys.executable).parent
# Updates before a policy runs as it will: traced graphs, PowerSGD's first iterations.
_FIRST = 14
# Whole updates of a turn: some 0.7 s of computing.
_TURN = 5
Figures = dict[str, float]


def slow_link(
    *,
    framework: Annotated[str, typer.Option(help="torch or tensorflow.")] = "torch",
    wire: Annotated[Literal["gloo", "mpi"], typer.Option(help="What the ranks talk over.")] = "gloo",
    mbit: Annotated[float, typer.Option(min=1.0, help="Rate of each link, in 10^6 bits/s.")] = 100.0,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each policy, in turns.")] = 1,
    turns: Annotated[int, typer.Option(min=1, help="Turns of a run, of some 5 updates each.")] = 12,
    only: Annotated[list[str] | None, typer.Option(help="These policies alone.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: FIELD.PATH=VALUE.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Measure an update of the default BERT by each policy, 1 rank on each of 2 hosts."""
    # The hosts are taken away again also when a signal ends this.
    handle_signals([signal.SIGTERM], lambda *_: sys.exit("ended by SIGTERM"))
    os.environ["PATH"] = f"{_BINARIES}:{os.environ['PATH']}"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    console = Console()
    common = ["evaluation.eval_steps=null", "num_threads=1", *(set_ or [])]
    # Gloo has no Adasum.
    names = [n for n in POLICIES if (not only or n in only) and (n != "adasum" or wire == "mpi")]
    found: dict[str, list[Figures]] = {name: [] for name in names}
    with emulated_hosts(2) as hosts:
        _separate(hosts, mbit)
        link = _measure_link(hosts, wire)
        for turn in range(rounds):
            for name in names:
                each = _UPDATES.get(name, 1)
                # Warmed up before the first timed update: what most of a run is like.
                policy = POLICIES[name].replace("warmup_steps: 60", "warmup_steps: 8")
                *alone, both = _measure(hosts, framework, wire, common, policy, turns, each)
                compute = median(max(x["step_time_s"] for x in pair) for pair in zip(*alone, strict=True))
                seconds = median(line["step_time_s"] for line in both)
                sent = median(line["wire_bytes"] for line in both) / each
                sending = sent / link["rate"]
                latency = _IN_TURN.get(name, 1) * link["collective"]
                run = {"bytes": sent, "compute": compute, "wire": sending, "seconds": seconds}
                found[name].append(run | {"ratio": (seconds - latency) / max(compute, sending)})
                console.print(
                    f"{framework}, round {turn + 1} of {rounds}: {name}, computing {compute * 1e3:.0f} ms, "
                    f"on the wire {sending * 1e3:.0f} ms, update {seconds * 1e3:.0f} ms"
                )
    print_table(as_table(f"{framework} over {wire}: 2 hosts at {mbit:g} Mbit/s", found), console)
    console.print(
        f"A bare TCP connection carries {link['rate'] * 8e-6:.1f} Mbit/s of payload, a round trip takes "
        f"{link['round_trip'] * 1e3:.2f} ms, an allreduce of one number {link['collective'] * 1e3:.1f} ms."
    )
    if json_file:
        json_file.write_text(json.dumps({"mbit": mbit, "link": link, "runs": found}, indent=2) + "\n")


def as_table(title: str, found: dict[str, list[Figures]]) -> Table:
    """The medians of every policy's rounds."""
    numbers = ("bytes", "computing", "on the wire", "update", "ratio", "in each round")
    columns: dict[str, Kind] = {"policy": "name", **dict.fromkeys(numbers, "number")}
    rows = []
    for name, runs in found.items():
        mid = {key: median(run[key] for run in runs) for key in runs[0]}
        times = (f"{mid[key] * 1e3:.0f} ms" for key in ("compute", "wire", "seconds"))
        each = " ".join(f"{run['ratio']:.2f}" for run in runs)
        rows.append((name, f"{mid['bytes']:,.0f}", *times, f"{mid['ratio']:.2f}", each))
    return make_table(columns, rows, title)


# Updates that a line of metrics tells of, from one exchange to the next; one where nothing is said.
_UPDATES = {"local_sgd, 4 updates": 4, "local_sgd, 4 updates, overlap": 4, "diloco, 20 updates": 20}
# Collectives of a bucket that wait for each other; one where nothing is said.
_IN_TURN = {"int8": 2, "powersgd rank 4": 2}


def _separate(hosts: Cluster, mbit: float) -> None:
    """Give each host a core of its own, as far as there are so many, and a link of that rate."""
    for i, name in enumerate(hosts.names):
        os.sched_setaffinity(hosts.pids[name], {_core(i)})
        command = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", f"{mbit}mbit"]
        inside = ["nsenter", "-t", str(hosts.pids[name]), "-n"]
        subprocess.run([*inside, *command, "burst", "128kb", "latency", "50ms"], check=True)


def _measure_link(hosts: Cluster, wire: str) -> Figures:
    probe, port = [sys.executable, str(Path(__file__).with_name("link.py"))], "9000"
    with ThreadPoolExecutor() as pool:
        serving = pool.submit(_call, hosts, 1, [*probe, "serve", port])
        output = _call(hosts, 0, [*probe, "measure", hosts.names[1], port])
        serving.result()
    with tempfile.TemporaryDirectory() as folder:
        command = _command(hosts, hosts.names, [probe[1], "collective", f"{folder}/seconds"], wire)
        _call(hosts, 0, command)
        return json.loads(output) | {"collective": float(Path(folder, "seconds").read_text())}


def _call(hosts: Cluster, at: int, command: list[str]) -> str:
    status, output = hosts.run(hosts.names[at], command, cwd=Path.cwd(), env=os.environ, timeout_s=60)
    if status:
        sys.exit(f"error: {' '.join(command)} failed:\n{output[-3000:]}")
    return output


def _core(host: int) -> int:
    cores = sorted(os.sched_getaffinity(0))
    return cores[host % len(cores)]


def _measure(
    hosts: Cluster, framework: str, wire: str, common: list[str], policy: str, turns: int, each: int
) -> list[list[Line]]:
    """Metric lines of jobs of one rank on each host, which exchange nothing, and then of a job of both."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [*(((name,), "{type: none}") for name in hosts.names), (hosts.names, policy)]
        commands = {}
        for at, (names, compression) in enumerate(jobs):
            settings = [*common, f"compression={compression}", "max_steps=1000000"]
            program = ["-m", f"hvdtrain.{framework}.job", "--output-dir", f"{folder}/{at}"]
            program += [part for setting in settings for part in ("--set", setting)]
            commands[Path(folder, str(at))] = names[0], _command(hosts, names, program, wire)
        with started(hosts, commands) as (*alone, both):
            groups = Group(alone, _FIRST, _TURN), Group([both], -(-_FIRST // each), max(1, _TURN // each))
            return [lines for group in take_turns(groups, turns) for lines in group]


def _command(hosts: Cluster, names: tuple[str, ...], program: list[str], wire: str) -> list[str]:
    """A Python program on one rank of each of these hosts."""
    return [
        *("taskset", "-c", str(_core(hosts.names.index(names[0])))),
        *(str(_BINARIES / "horovodrun"), "-np", str(len(names)), f"--{wire}"),
        *("-H", ",".join(f"{name}:1" for name in names)),
        # One rank alone is on its own host, which horovodrun looks for on lo.
        *("--network-interface", "eth0") * (len(names) > 1),
        *(sys.executable, *program),
    ]


if __name__ == "__main__":
    typer.run(slow_link)
