"""Peak memory of a training step: of one layer and of many, recomputed, and of many that are kept."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.core.data.batches import Batch
from hvdtrain.core.families import gpt2

ROWS, LENGTH, LAYERS = 16, 512, 8


def wide(layers: int) -> gpt2.ModelSpec:
    """A GPT-2 whose activations are much larger than its weights."""
    dropout: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes: dict[str, Any] = {"vocab_size": 64, "n_positions": LENGTH, "n_embd": 64, "n_head": 1}
    return gpt2.ModelSpec(n_layer=layers, **sizes, **dropout)


def main(framework: str) -> None:
    """Print the peaks in bytes; a peak only grows, so what should need less comes first."""
    ids = np.zeros((ROWS, LENGTH), np.int32)
    batch = Batch({"input_ids": ids}, ids[:, 1:], np.ones((ROWS, LENGTH - 1)), ROWS * (LENGTH - 1.0), {})
    found = []
    for model, recompute in ((wide(1), True), (wide(LAYERS), True), (wide(LAYERS), False)):
        _step(framework, model, recompute, batch)
        found.append(_peak())
    print(json.dumps(found))


def _peak() -> int:
    """Of this process; what getrusage tells begins with that of its parent."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def _step(framework: str, spec: gpt2.ModelSpec, recompute: bool, batch: Batch) -> None:
    adapter = import_module(f"hvdtrain.{framework}.model")
    model = adapter.Model(spec, gpt2.weights(spec))
    if recompute:
        model.network.gradient_checkpointing_enable()
    tensors = adapter.tensors(batch)
    if framework == "torch":
        model.loss_sum(tensors, training=True).backward()
        return
    tf = import_module("tensorflow")

    @tf.function(autograph=False)
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = model.loss_sum(tensors, training=True)
        return tape.gradient(loss, [part for parts in model.parameters.values() for part in parts])

    step()


if __name__ == "__main__":
    main(sys.argv[1])
