"""What a machine has for training with Horovod, what it lacks, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from hvdtrain.engine.cache import Installed, installed_horovod, misfits
from hvdtrain.engine.machine import core_row, gpu_row, hostname_row, memory_row, reach_rows, ssh_row
from hvdtrain.engine.probe import Probe, probe_horovod
from hvdtrain.engine.rows import Row, Status
from hvdtrain.engine.security_edits import CLOSED
from hvdtrain.engine.versions import Versions, distribution_version, find_versions, mpi_flavour
from hvdtrain.launch.hosts import parse_hostfile

_REBUILD = "hvdtrain engine build --install"


def examine(hostfile: Path | None = None) -> list[Row]:
    """Looks at everything that training needs; a Horovod that crashes when imported is a row like any other.

    Args:
        hostfile: hosts to try over ssh as well.

    Raises:
        LaunchError: the hostfile cannot be used.
    """
    hosts = parse_hostfile(hostfile) if hostfile else ()
    versions, installed = find_versions(), installed_horovod()
    with ThreadPoolExecutor(max_workers=2) as pool:
        probes = dict(zip(versions.frameworks, pool.map(probe_horovod, versions.frameworks), strict=True))
    return [
        Row("python", "ok", f"{sys.version.split()[0]} at {sys.executable}"),
        *framework_rows(versions),
        horovod_row(versions, installed),
        *(load_row(name, probe) for name, probe in probes.items() if installed),
        *feature_rows(versions, probes.values()),
        *wire_rows(installed),
        *vulnerability_rows(installed),
        ssh_row(needed=bool(hosts)),
        hostname_row(),
        core_row(),
        memory_row(),
        gpu_row(),
        *reach_rows(hosts),
    ]


def framework_rows(versions: Versions) -> list[Row]:
    """One row each for torch, TensorFlow and Keras; only having neither framework is a fault."""
    lacking: Status = "absent" if versions.frameworks else "missing"
    rows = [
        Row(name, "ok", version)
        if version
        else Row(name, lacking, "not installed", f"pip install 'hvdtrain[{extra}]'")
        for name, version, extra in (
            ("torch", versions.torch, "torch"),
            ("tensorflow", versions.tensorflow, "tensorflow"),
        )
    ]
    keras = distribution_version("keras")
    if versions.tensorflow and keras is None:
        rows.append(Row("keras", "missing", "not installed", "pip install 'hvdtrain[tensorflow]'"))
    elif versions.tensorflow:
        rows.append(Row("keras", "ok", str(keras)))
    return rows


def horovod_row(versions: Versions, installed: Installed | None) -> Row:
    """Whether a Horovod is installed that was built for the very frameworks that are installed."""
    if installed is None:
        return Row("horovod", "missing", "not installed", _REBUILD)
    faults = misfits(installed, versions)
    if faults:
        return Row("horovod", "missing", "; ".join(faults), f"rebuild: {_REBUILD}")
    built_for = ", ".join(f"{name} {version}" for name, version in installed.built_for.items())
    version = installed.version or "unknown version"
    return Row("horovod", "ok", f"{version}, built for {built_for or 'no framework'}")


def load_row(name: str, probe: Probe) -> Row:
    """Whether `import horovod.<name>` survives, tried in a process of its own."""
    if probe.error is None:
        return Row(f"horovod.{name}", "ok", "loads")
    return Row(f"horovod.{name}", "missing", probe.error, f"rebuild: {_REBUILD} --force")


def feature_rows(versions: Versions, probes: Iterable[Probe]) -> list[Row]:
    """What the Horovod that loads was built with: Gloo, MPI, NCCL."""
    loaded = [probe for probe in probes if probe.error is None]
    if not loaded:
        return []
    has = {name: all(getattr(probe, name) for probe in loaded) for name in ("gloo", "mpi", "nccl")}
    rows = [Row("gloo", "ok", "built") if has["gloo"] else Row("gloo", "missing", "not built", _REBUILD)]
    # Not `versions.mpi`: running needs no MPI compiler.
    mpi = mpi_flavour()
    if has["mpi"] and mpi:
        rows.append(Row("mpi", "ok", f"built; {mpi}"))
    elif has["mpi"]:
        rows.append(Row("mpi", "absent", "built, but mpirun is not here", "apt-get install openmpi-bin"))
    else:
        install = "" if versions.mpi else "apt-get install openmpi-bin libopenmpi-dev, then "
        rows.append(
            Row("mpi", "absent", "not built: Gloo only", f"for the quicker wire: {install}{_REBUILD}")
        )
    if has["nccl"]:
        rows.append(Row("nccl", "ok", f"built; NCCL {versions.nccl or 'headers are gone'}"))
    else:
        reason = versions.nccl_obstacle
        rows.append(Row("nccl", "absent", "not built", f"to use GPUs: {reason or 'rebuild: ' + _REBUILD}"))
    return rows


def wire_rows(installed: Installed | None) -> list[Row]:
    """Whether an installed Horovod's wire has bfloat16, which only a build by hvdtrain gives it."""
    if installed is None:
        return []
    if "bfloat16" in installed.wire_types:
        return [Row("bfloat16", "ok", "on the wire")]
    return [Row("bfloat16", "absent", "not on the wire", f"to use compression.type=bf16: {_REBUILD}")]


def vulnerability_rows(installed: Installed | None) -> list[Row]:
    """Which known vulnerabilities of Horovod's releases an installed Horovod has."""
    if installed is None:
        return []
    still = [name for name in CLOSED if name not in installed.closed]
    if not still:
        return [Row("known vulnerabilities", "ok", f"closed: {', '.join(CLOSED)}")]
    what = f"{', '.join(still)}: whoever reaches the launcher's port runs code"
    return [Row("known vulnerabilities", "open", what, f"rebuild: {_REBUILD}")]


def as_json(rows: list[Row]) -> str:
    """The rows, and whether everything needed is there, as one JSON object."""
    ok = all(row.status != "missing" for row in rows)
    return json.dumps({"ok": ok, "rows": [asdict(row) for row in rows]}, indent=2)


def print_table(rows: list[Row]) -> None:
    """Prints the rows as a table."""
    from rich.text import Text

    from hvdtrain.core.tables import Kind, make_table
    from hvdtrain.core.tables import print_table as show

    marks = {
        "ok": ("ok", "green"),
        "absent": ("not there", "yellow"),
        "missing": ("missing", "bold red"),
        "open": ("open", "bold red"),
    }
    columns: dict[str, Kind] = {"what": "name", "state": "name", "found": "text", "what to do": "text"}
    cells = [(row.name, Text(*marks[row.status]), row.found, row.action) for row in rows]
    show(make_table(columns, cells, lines=False))
