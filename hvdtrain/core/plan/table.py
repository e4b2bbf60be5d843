"""The plan as a table for people."""

from __future__ import annotations

from rich.console import Console

from hvdtrain.core.data.batches import TextFacts
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.tables import Kind, make_table, print_table


def print_plan(plan: Plan, title: str) -> None:
    """Print a plan on standard output; bytes are shown in MiB (2^20)."""
    columns: dict[str, Kind] = {" ": "name", "  ": "name", "   ": "text"}
    console = Console()
    print_table(make_table(columns, _rows(plan), title, lines=False), console)
    for note in plan.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False, highlight=False)


def _rows(plan: Plan) -> list[tuple[str, str, str]]:
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
        ("  weights", _mib(memory.weights), ""),
        ("  gradients", _mib(memory.gradients), ""),
        ("  optimizer", _mib(memory.optimizer), ""),
        ("  compression", _mib(memory.compression), "residuals and the like"),
        ("  activations", _mib(memory.activations), "of one micro-batch, in PyTorch"),
        ("  16-bit weights", _mib(memory.low_precision_weights), "copies for matrix products"),
        ("Horovod cycle", f"{plan.cycle_time_ms:g} ms", "unless HOROVOD_CYCLE_TIME is set"),
    ]


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
