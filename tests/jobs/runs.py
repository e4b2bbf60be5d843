"""Launching real jobs from tests, and the tiny specs they train."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType
from typing import Any

from tests.jobs.standing import train_standing

FRAMEWORKS = ("torch", "tensorflow")
# What tests on GPUs are for: one Horovod has one CUDA, which the wheels of the two may not share.
INSTALLED = tuple(name for name in FRAMEWORKS if find_spec(name))
ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
ON_GPU = Path(__file__).with_name("on_gpu.py")
# horovodrun, which asks the first framework it can import what Horovod was built with: torch comes sooner.
HOROVODRUN = "; ".join(
    (
        *(["import sys; sys.modules['tensorflow'] = None"] * ("torch" in INSTALLED)),
        "from horovod.runner.launch import run_commandline",
        "run_commandline()",
    )
)
# Who waits yields: tests run beside each other.
PLACING = ("--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1")
MPIRUN = ("mpirun", "--allow-run-as-root", "--tag-output", *PLACING)
# A BERT small enough that start-up is most of a test.
TINY = (
    "model.vocab_size=512",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "model.max_position_embeddings=32",
    "data.max_seq_length=32",
    "evaluation.eval_steps=null",
    "logging.tensorboard=false",
    "schedule.warmup_steps=4",
    "num_threads=1",
)
# What jobs of causal language models have in common.
_CAUSAL = (
    "model.vocab_size=300",
    "model.dtype=float64",
    "data.max_seq_length=32",
    "data.packing=false",
    "data.validation_split=0.01",
    "batch.per_device_train_batch_size=1",
    "batch.global_batch_size=8",
    "schedule.warmup_ratio=null",
    "schedule.warmup_steps=2",
    "max_grad_norm=0.5",
    "logging.tensorboard=false",
    "evaluation.eval_steps=null",
    "num_threads=1",
)
# A GPT-2 of that size.
TINY_GPT2 = ("model.n_embd=32", "model.n_layer=2", "model.n_head=2", "model.n_positions=32", *_CAUSAL)
# A Llama of that size.
TINY_LLAMA = (
    "model.hidden_size=32",
    "model.intermediate_size=88",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=4",
    "model.num_key_value_heads=2",
    "model.max_position_embeddings=32",
    *_CAUSAL,
)
# A ViT of that size; digits are cached by the test before its ranks start, which have no scikit-learn.
TINY_VIT = (
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.patch_size=4",
    "model.dtype=float64",
    "batch.per_device_train_batch_size=1",
    "batch.global_batch_size=8",
    "num_train_epochs=null",
    "schedule.warmup_ratio=null",
    "schedule.warmup_steps=2",
    "max_grad_norm=0.5",
    "logging.tensorboard=false",
    "evaluation.eval_steps=null",
    "num_threads=1",
)

# A BERT with a classifier of that size.
TINY_CLASSIFIER = (
    "model.vocab_size=512",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "model.max_position_embeddings=64",
    "model.dtype=float64",
    "data.validation_split=0.05",
    "batch.per_device_train_batch_size=4",
    "batch.global_batch_size=16",
    "schedule.warmup_ratio=null",
    "schedule.warmup_steps=4",
    "max_grad_norm=0.5",
    "logging.tensorboard=false",
    "evaluation.eval_steps=null",
    "num_threads=1",
)


def small_corpus(directory: Path) -> list[str]:
    """Overrides for a corpus of 120 documents, each a sequence of its own length, all below 32 tokens."""
    words = " ".join(topics.values()).split()
    file = directory / "corpus.txt"
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(" ".join(words[i * 9 : i * 9 + 2 + i % 7]) for i in range(120)))
    return [
        "data.corpus=null",
        f"data.files=[{file}]",
        "data.packing=false",
        "data.validation_split=0.5",
    ]


def start_sooner(kept: tuple[str, ...] = ()) -> None:
    """Called by a rank before it imports a framework: hides what the libraries can do without.

    They import it where it is installed, and few ranks of tests use it; it is a third of TensorFlow's start,
    and PyTorch's compiler half of PyTorch's.

    Args:
        kept: what these ranks use.
    """
    for name in {"sklearn", "scipy", "matplotlib", "kagglehub", "tensorflow_text"}.difference(kept):
        sys.modules[name] = None  # type: ignore[assignment]
    sys.modules.setdefault(_COMPILER, _Compiler(_COMPILER))


_COMPILER = "torch._dynamo"


class _Compiler(ModuleType):
    """PyTorch's compiler, imported when something is compiled.

    Optimizers import it to say that they are not; that takes as long as PyTorch's own import.
    """

    @staticmethod
    def disable(function: Any, *_: Any, **__: Any) -> Any:
        return function

    @staticmethod
    def graph_break() -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        # Submodules are looked for there; whoever goes through all modules asks for other names like it.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        sys.modules.pop(_COMPILER, None)
        return getattr(importlib.import_module(_COMPILER), name)


def launch(
    np: int, program: list[str], wire: str = "mpirun", timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run `python program` on np ranks of this host: by mpirun, which starts in no time, or by horovodrun.

    Args:
        np: how many.
        program: what Python runs.
        wire: `mpirun`; or `mpi`, `gloo` or `nccl`, by horovodrun. Ranks see GPUs with `nccl` alone, and share
            them if need be.
        timeout: in seconds.
    """
    if wire == "nccl":
        program = [str(ON_GPU), *program]
    ranks = [sys.executable, *program]
    if wire == "mpirun":
        return _run([*MPIRUN, "-np", str(np), *ranks], wire, timeout)
    command = [sys.executable, "-c", HOROVODRUN, "-np", str(np)]
    command += ["--mpi" if wire == "mpi" else "--gloo"]
    command += [f"--mpi-args={' '.join(PLACING)}"] * (wire == "mpi")
    return _run([*command, *ranks], wire, timeout)


def launch_each(
    programs: list[tuple[Path, list[str]]], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run another `python program` on each rank, every one in a working directory of its own, by mpirun."""
    command = [*MPIRUN]
    for i, (place, program) in enumerate(programs):
        command += [*[":"] * (i > 0), "-np", "1", "-wdir", str(place), sys.executable, *program]
    return _run(command, "mpirun", timeout)


def _environment(wire: str) -> dict[str, str]:
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # Workers are scripts below tests/ and import from it; an editable install exposes hvdtrain alone.
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTEST_PROCESS": str(os.getpid()),
    }
    if wire != "nccl":
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env


def _run(command: list[str], wire: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=_environment(wire),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def train_all(
    directory: Path,
    framework: str,
    np: int,
    scenarios: dict[str, list[str]],
    resume: dict[str, Path] | None = None,
    wire: str = "mpirun",
    spec: str | dict[str, str] = "bert",
    allow: Sequence[str] = (),
) -> dict[str, Path]:
    """Train each scenario (overrides by name) on np ranks, which stay; returns the output directories.

    All change one spec, or each that of its name. Those that go on from a checkpoint may differ from its run
    in the fields that are allowed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    listing = directory / "scenarios.json"
    places = {name: str(path) for name, path in (resume or {}).items()}
    specs = spec if isinstance(spec, dict) else dict.fromkeys(scenarios, spec)
    found = [
        {"name": n, "set": sets, "spec": specs[n], "resume": places.get(n), "allow": list(allow)}
        for n, sets in scenarios.items()
    ]
    listing.write_text(json.dumps(found))
    program = [str(WORKER), framework]
    # A timeline is whole when its ranks have ended.
    if wire == "mpirun" and "HOROVOD_TIMELINE" not in os.environ:
        tensorflow = framework == "tensorflow"
        # Models of users set what Keras keeps for the whole process.
        key = framework, np, tensorflow and any("/" in each for each in specs.values())
        command = [*MPIRUN, "-np", str(np), sys.executable, *program]
        traced = len(scenarios) if tensorflow else 0
        train_standing(key, np, command, _environment(wire), listing, traced)
    else:
        done = launch(np, [*program, str(listing)], wire)
        assert done.returncode == 0, done.stdout[-5000:]
    return {name: directory / name for name in scenarios}
