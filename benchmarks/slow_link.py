"""Step times of compression policies between two emulated hosts with a slow link between them.

Beside each the time that cannot be beaten: computing alone, right before it, or sending the bytes as fast as
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

from hvdtrain.core.metrics import read_metrics
from tests.launch.cluster import Cluster, emulated_hosts

# Updates before a policy runs as it will: traced graphs, PowerSGD's first iterations.
_FIRST = 14
Figures = dict[str, float]


def slow_link(
    *,
    framework: Annotated[str, typer.Option(help="torch or tensorflow.")] = "torch",
    wire: Annotated[Literal["gloo", "mpi"], typer.Option(help="What the ranks talk over.")] = "gloo",
    mbit: Annotated[float, typer.Option(min=1.0, help="Rate of each link, in 10^6 bits/s.")] = 100.0,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each policy, in turns.")] = 3,
    steps: Annotated[int, typer.Option(min=4, help="Timed updates of a run.")] = 20,
    only: Annotated[list[str] | None, typer.Option(help="These policies alone.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: FIELD.PATH=VALUE.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Measure an update of the default BERT by each policy, 1 rank on each of 2 hosts."""
    # The hosts are taken away again also when a signal ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
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
                # Warmed up before the first timed update: what most of a run is like.
                policy = POLICIES[name].replace("warmup_steps: 60", "warmup_steps: 8")
                compute = _compute(hosts, framework, [*common, "compression.type=none"], steps)
                each = _UPDATES.get(name, 1)
                job = [*common, f"compression={policy}"]
                lines = _run(hosts, framework, job, hosts.names, steps, each=each, wire=wire)
                seconds = median(x["step_time_s"] for x in lines)
                sent = median(x["wire_bytes"] for x in lines) / each
                sending = sent / link["rate"]
                latency = _IN_TURN.get(name, 1) * link["collective"]
                run = {"bytes": sent, "compute": compute, "wire": sending, "seconds": seconds}
                found[name].append(run | {"ratio": (seconds - latency) / max(compute, sending)})
                console.print(
                    f"{framework}, round {turn + 1} of {rounds}: {name}, computing {compute * 1e3:.0f} ms, "
                    f"on the wire {sending * 1e3:.0f} ms, update {seconds * 1e3:.0f} ms"
                )
    console.print(_table(f"{framework} over {wire}: 2 hosts at {mbit:g} Mbit/s", found))
    console.print(
        f"A bare TCP connection carries {link['rate'] * 8e-6:.1f} Mbit/s of payload, a round trip takes "
        f"{link['round_trip'] * 1e3:.2f} ms, an allreduce of one number {link['collective'] * 1e3:.1f} ms."
    )
    if json_file:
        json_file.write_text(json.dumps({"mbit": mbit, "link": link, "runs": found}, indent=2) + "\n")


def _table(title: str, found: dict[str, list[Figures]]) -> Table:
    table = Table(title=title)
    for heading in ("policy", "bytes", "computing", "on the wire", "update", "ratio", "in each round"):
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for name, runs in found.items():
        mid = {key: median(run[key] for run in runs) for key in runs[0]}
        times = (f"{mid[key] * 1e3:.0f} ms" for key in ("compute", "wire", "seconds"))
        each = " ".join(f"{run['ratio']:.2f}" for run in runs)
        table.add_row(name, f"{mid['bytes']:,.0f}", *times, f"{mid['ratio']:.2f}", each)
    return table


# Updates that a line of metrics tells of, from one exchange to the next; one where nothing is said.
_UPDATES = {"local_sgd, 4 updates": 4, "diloco, 20 updates": 20}
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
        serving = pool.submit(
            hosts.run, hosts.names[1], [*probe, "serve", port], cwd=Path.cwd(), env=os.environ, timeout_s=60
        )
        command = [*probe, "measure", hosts.names[1], port]
        status, output = hosts.run(hosts.names[0], command, cwd=Path.cwd(), env=os.environ, timeout_s=60)
        serving.result()
    if status:
        sys.exit(f"error: {' '.join(command)} failed:\n{output}")
    with tempfile.TemporaryDirectory() as folder:
        _launch(hosts, hosts.names, [probe[1], "collective", f"{folder}/seconds"], wire)
        return json.loads(output) | {"collective": float(Path(folder, "seconds").read_text())}


def _core(host: int) -> int:
    cores = sorted(os.sched_getaffinity(0))
    return cores[host % len(cores)]


def _compute(hosts: Cluster, framework: str, overrides: list[str], steps: int) -> float:
    """An update of jobs of one rank, one on each host at once: that of the slower, as in a job of both."""
    with ThreadPoolExecutor() as pool:
        alone = [pool.submit(_run, hosts, framework, overrides, (name,), steps) for name in hosts.names]
        times = [[line["step_time_s"] for line in each.result()] for each in alone]
    return median(max(together) for together in zip(*times, strict=True))


def _run(
    hosts: Cluster,
    framework: str,
    overrides: list[str],
    names: tuple[str, ...],
    steps: int,
    *,
    each: int = 1,
    wire: str = "gloo",
) -> list[dict[str, float]]:
    """Metric lines, `each` of so many updates, of a job with one rank on each of these hosts."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [part for override in overrides for part in ("--set", override)]
        # The last line is left out: periodic policies exchange once more at the end.
        settings += ["--set", f"max_steps={_FIRST + max(steps, each) + each}", "--output-dir", folder]
        _launch(hosts, names, ["-m", f"hvdtrain.{framework}.job", *settings], wire)
        return [line for line in read_metrics(Path(folder))[0][:-1] if line["step"] - each >= _FIRST]


def _launch(hosts: Cluster, names: tuple[str, ...], program: list[str], wire: str) -> None:
    """Run a Python program on one rank of each of these hosts."""
    binaries = Path(sys.executable).parent
    where = ",".join(f"{name}:1" for name in names)
    command = [
        *("taskset", "-c", str(_core(hosts.names.index(names[0])))),
        *(str(binaries / "horovodrun"), "-np", str(len(names)), f"--{wire}", "-H", where),
        # One rank alone is on its own host, which horovodrun looks for on lo.
        *("--network-interface", "eth0") * (len(names) > 1),
        *(sys.executable, *program),
    ]
    env = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    status, output = hosts.run(names[0], command, cwd=Path.cwd(), env=env, timeout_s=600)
    if status:
        sys.exit(f"error: {' '.join(command)} failed:\n{output[-3000:]}")


if __name__ == "__main__":
    typer.run(slow_link)
