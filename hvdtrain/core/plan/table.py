"""The plan as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console

from hvdtrain.core.data.batches import TextFacts
from hvdtrain.core.plan.memory import Memory
from hvdtrain.core.plan.peak import Peak
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.plan.stages import MOST_LAYERS, Stage, Stages
from hvdtrain.core.tables import Kind, make_table, print_table

# Beside parts of a rank's memory.
_REMARKS = {
    "compression": "residuals and the like",
    "activations": "of one micro-batch, in PyTorch",
    "16-bit weights": "copies for matrix products",
    "checkpoint": "rank 0's copy of what is written in the background",
}
_NAMES = {"torch": "PyTorch", "tensorflow": "TensorFlow"}


def print_plan(plan: Plan, title: str, framework: str | None = None) -> None:
    """Print a plan on standard output; bytes are shown in MiB (2^20).

    Args:
        plan: to print.
        title: above the table.
        framework: the one whose peak of memory is shown; None: both.
    """
    columns: dict[str, Kind] = {" ": "name", "  ": "name", "   ": "text"}
    console = Console()
    print_table(make_table(columns, _rows(plan, framework), title, lines=False), console)
    _print_notes(console, plan.notes)


def print_stages(stages: Stages, title: str) -> None:
    """Print stages on standard output, a column each; bytes are shown in MiB (2^20).

    Args:
        stages: below the table stand the reasons of those without numbers.
        title: above the table.
    """
    columns: dict[str, Kind] = {"zero_stage": "name", **{str(stage): "number" for stage in stages.found}}
    cells = [_stage(found, stages.varied) for found in stages.found.values()]
    rows = [(name, *(column.get(name, "-") for column in cells)) for name in max(cells, key=len)]
    console = Console()
    console.print(title, soft_wrap=True, markup=False, highlight=False)
    if rows:
        print_table(make_table(columns, rows, lines=False), console)
    _print_notes(console, _stage_notes(stages))


def _stage_notes(stages: Stages) -> Iterator[str]:
    yield "memory is that at the end of a forward pass; peaks are of whole processes on a CPU"
    if stages.available is not None:
        fits = f"as large as fits in {_mib(stages.available)}, up to {MOST_LAYERS:,}"
        yield f"{stages.varied} is {fits}; all else is as in the spec"
    for stage, found in stages.found.items():
        if isinstance(found, str):
            yield f"zero_stage {stage}: {found}"


def _print_notes(console: Console, notes: Iterable[str]) -> None:
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False, highlight=False)


def _stage(found: Stage | str, varied: str | None) -> dict[str, str]:
    """A column of the table, by the names of its rows; empty where there are no numbers."""
    if isinstance(found, str):
        return {}
    return {
        **({varied: f"{found.layers:,}"} if varied else {}),
        "parameters": f"{found.parameters:,}",
        "memory per rank": _mib(found.memory.total),
        **{f"  {part}": _mib(count) for part, count in _parts(found.memory).items()},
        **{f"peak in {_NAMES[name]}": _mib(peak.total) for name, peak in found.memory.peaks.items()},
        "wire per update": _mib(found.wire_bytes_per_update),
    }


def _parts(memory: Memory) -> dict[str, int | None]:
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "compression": memory.compression,
        "activations": memory.activations,
        "16-bit weights": memory.low_precision_weights,
        **({"checkpoint": memory.checkpoint} if memory.checkpoint else {}),
    }


def _rows(plan: Plan, framework: str | None) -> list[tuple[str, str, str]]:
    memory = plan.memory
    epochs = plan.max_steps / plan.updates_per_epoch
    return [
        ("ranks", str(plan.size), f"{plan.threads} thread(s) each"),
        ("global batch", *_global_batch(plan)),
        ("updates", str(plan.max_steps), f"{epochs:.2f} epochs of {plan.updates_per_epoch}"),
        ("warm-up", f"{plan.warmup_steps} updates", f"to a learning rate of {plan.learning_rate:g}"),
        ("training split", f"{plan.train_samples} samples", ""),
        (
            "validation split",
            f"{plan.validation_samples} samples",
            f"{plan.per_device_eval_batch_size} per device",
        ),
        *_tokenizer(plan.text),
        ("parameters", f"{plan.parameters:,}", f"{plan.decayed_parameters:,} with weight decay"),
        ("gradient buckets", str(len(plan.buckets)), "one reduction each"),
        ("wire per update", *_wire(plan)),
        (
            "matrix products",
            plan.compute_dtype,
            "operations not predicted"
            if plan.flops_per_update is None
            else f"{plan.flops_per_update / 1e9:.3g} GFLOP an update and rank",
        ),
        ("memory per rank", _mib(memory.total), "at the end of a forward pass"),
        *((f"  {part}", _mib(count), _REMARKS.get(part, "")) for part, count in _parts(memory).items()),
        *(
            (f"peak in {_NAMES[name]}", _mib(peak.total), _describe_peak(peak))
            for name, peak in memory.peaks.items()
            if framework in (None, name)
        ),
        ("Horovod cycle", f"{plan.cycle_time_ms:g} ms", "unless HOROVOD_CYCLE_TIME is set"),
    ]


def _describe_peak(peak: Peak) -> str:
    own, momentary = (round(count / 2**20) for count in (peak.framework, peak.momentary))
    return f"on a CPU; framework {own} MiB, temporary arrays {momentary} MiB"


def _global_batch(plan: Plan) -> tuple[str, str]:
    batch, accumulation = plan.batch, plan.accumulation
    ranks = f"{plan.size} ranks x {batch.per_device_train_batch_size} per device x "
    if accumulation.target_tokens is not None:
        steps = f"about {batch.gradient_accumulation_steps} accumulation steps: "
        return (
            f"about {batch.global_batch_size} samples",
            f"{ranks}{steps}{accumulation.target_tokens:,} tokens",
        )
    stages = accumulation.reached(plan.max_steps)
    if len(stages) == 1:
        return f"{batch.global_batch_size} samples", f"{ranks}{stages[0][1]} accumulation steps"
    ends = [*(start for start, _ in stages[1:]), plan.max_steps]
    shown = (
        f"{steps} (updates {start + 1} to {end})" for (start, steps), end in zip(stages, ends, strict=True)
    )
    return (
        f"{batch.global_batch_size} samples in the last stage",
        f"{ranks}accumulation steps: {', '.join(shown)}",
    )


def _tokenizer(text: TextFacts | None) -> list[tuple[str, str, str]]:
    if text is None:
        return []
    size = f"{text.tokenizer_size:,} of {text.vocab_size:,} tokens"
    return [("tokenizer", size, f"{text.unknown_share:.2%} of the text is [UNK]")]


def _wire(plan: Plan) -> tuple[str, str]:
    at_once, every = _mib(plan.wire_bytes_per_update), plan.sync_every
    if every == 1:
        return at_once, "gradients that one rank hands to collectives"
    average = _mib(plan.wire_bytes_per_update / every)
    return average, f"{at_once} every {every} updates: weights that one rank hands to collectives"


def _mib(count: float | None) -> str:
    return "not predicted" if count is None else f"{count / 2**20:.2f} MiB"
