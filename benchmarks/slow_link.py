"""Step times of compression policies between two emulated hosts with a slow link between them.

Beside each the time that cannot be beaten: computing, or sending the bytes at the link's rate, whichever is
longer. Needs root, iproute2 and openssh-server. See docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Annotated

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
    mbit: Annotated[float, typer.Option(min=1.0, help="Rate of each link, in 10^6 bits/s.")] = 100.0,
    steps: Annotated[int, typer.Option(min=4, help="Timed updates.")] = 16,
    only: Annotated[list[str] | None, typer.Option(help="These policies alone.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: FIELD.PATH=VALUE.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Measure an update of the default BERT by each policy, 1 rank on each of 2 hosts."""
    console = Console()
    common = [f"max_steps={_FIRST + steps}", "evaluation.eval_steps=null", "num_threads=1", *(set_ or [])]
    names = [name for name in POLICIES if (not only or name in only) and name not in _NOT_EACH_UPDATE]
    found: dict[str, Figures] = {}
    with emulated_hosts(2) as hosts:
        compute = _compute(hosts, framework, [*common, "compression.type=none"])
        _shape(hosts, mbit)
        for name in names:
            console.print(f"{framework}: {name} ...")
            # Warmed up before the first timed update: what most of a run is like.
            policy = POLICIES[name].replace("warmup_steps: 60", "warmup_steps: 8")
            found[name] = _measure(hosts, framework, [*common, f"compression={policy}"], hosts.names)
    table = Table(title=f"{framework}: 2 hosts at {mbit:g} Mbit/s, computing {compute * 1e3:.0f} ms")
    for heading in ("policy", "bytes", "on the wire", "limit", "update", "ratio"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for name, run in found.items():
        wire = run["bytes"] * 8 / (mbit * 1e6)
        run |= {"wire": wire, "limit": max(compute, wire), "ratio": run["seconds"] / max(compute, wire)}
        times = (f"{run[key] * 1e3:.0f} ms" for key in ("wire", "limit", "seconds"))
        table.add_row(name, f"{run['bytes']:,.0f}", *times, f"{run['ratio']:.2f}")
    console.print(table)
    if json_file:
        json_file.write_text(json.dumps({"mbit": mbit, "compute": compute, "runs": found}, indent=2) + "\n")


# Adasum has no Gloo; the others' updates differ among each other.
_NOT_EACH_UPDATE = {"adasum", "local_sgd, 4 updates", "diloco, 20 updates"}


def _compute(hosts: Cluster, framework: str, overrides: list[str]) -> float:
    """An update of a job of one rank, while the other hosts run one of their own: all share this machine."""
    with ThreadPoolExecutor() as pool:
        alone = [pool.submit(_measure, hosts, framework, overrides, (name,)) for name in hosts.names]
        return max(each.result()["seconds"] for each in alone)


def _shape(hosts: Cluster, mbit: float) -> None:
    for name in hosts.names:
        command = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", f"{mbit}mbit"]
        inside = ["nsenter", "-t", str(hosts.pids[name]), "-n"]
        subprocess.run([*inside, *command, "burst", "128kb", "latency", "50ms"], check=True)


def _measure(hosts: Cluster, framework: str, overrides: list[str], names: tuple[str, ...]) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        settings = [part for override in overrides for part in ("--set", override)]
        binaries = Path(sys.executable).parent
        where = ",".join(f"{name}:1" for name in names)
        command = [
            *(str(binaries / "horovodrun"), "-np", str(len(names)), "--gloo", "-H", where),
            # One rank alone is on its own host, which horovodrun looks for on lo.
            *("--network-interface", "eth0") * (len(names) > 1),
            *(sys.executable, "-m", f"hvdtrain.{framework}.job", *settings, "--output-dir", folder),
        ]
        env = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "TF_CPP_MIN_LOG_LEVEL": "3"}
        status, output = hosts.run(names[0], command, cwd=Path.cwd(), env=env, timeout_s=600)
        if status:
            sys.exit(f"error: {' '.join(command)} failed:\n{output[-3000:]}")
        lines = read_metrics(Path(folder))[0][_FIRST:]
    return {
        "seconds": median(x["step_time_s"] for x in lines),
        "bytes": median(x["wire_bytes"] for x in lines),
    }


if __name__ == "__main__":
    typer.run(slow_link)
