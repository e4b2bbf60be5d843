"""Handwritten digits in a PyTorch loop of one's own: ranks, accumulation, mixed precision and checkpoints.

    mpirun -np 2 python examples/torch_digits.py --amp --state outputs/digits-torch

Told to stop by SIGTERM or SIGUSR1 to any rank, it saves and ends with status 85. Started again with the same
`--state`, it goes on where it was stopped, on any number of ranks. The same network, numbers and order of
samples as the Keras example, so in float64 their curves agree.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional
from torch.utils.data import TensorDataset

import hvdtrain.torch as hvd

TRAINING, GLOBAL_BATCH, MICRO_BATCH, EPOCHS = 1500, 64, 16, 3


def main() -> None:
    options = parse()
    hvd.init()
    device = torch.device("cuda", hvd.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dtype = getattr(torch, options.dtype)

    x, y = load_digits(return_X_y=True)
    images, digits = torch.tensor(x / 16, dtype=dtype), torch.tensor(y)
    training = TensorDataset(images[:TRAINING], digits[:TRAINING])
    # What a rank takes at once is the same on any number of them, and so is the global batch.
    micro_batches = max(1, GLOBAL_BATCH // (MICRO_BATCH * hvd.size()))
    loader = hvd.DataLoader(training, GLOBAL_BATCH, seed=0, gradient_accumulation_steps=micro_batches)

    model = network(dtype).to(device)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        named_parameters=model.named_parameters(),
        compression=options.compression,
        gradient_accumulation_steps=micro_batches,
        average="samples",
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    scaler = torch.amp.GradScaler(device.type, enabled=options.amp)

    curve: list[float] = []
    checkpoint = None
    if options.state:
        checkpoint = hvd.Checkpoint(
            model, optimizer, loader, scaler=scaler, directory=options.state, save_total_limit=2
        )
        if found := checkpoint.restore("auto"):
            curve = found.extra
    for epoch in range(loader.epoch, EPOCHS):
        loss_sum, samples = 0.0, 0
        for i, (inputs, targets) in enumerate(loader, start=1):
            with torch.autocast(device.type, torch.float16, enabled=options.amp):
                loss = functional.cross_entropy(model(inputs.to(device)), targets.to(device))
            optimizer.batch_samples = len(inputs)
            scaler.scale(loss).backward()
            # A rank's last micro-batches of an epoch may be empty, and the mean of nothing is NaN.
            if len(inputs):
                loss_sum, samples = loss_sum + loss.item() * len(inputs), samples + len(inputs)
            if i % micro_batches == 0:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                curve.append(hvd.metric_average(loss_sum / max(samples, 1), samples))
                loss_sum, samples = 0.0, 0
                due = len(curve) % options.save_steps == 0
                if checkpoint and (checkpoint.reached_preemption() or due):
                    checkpoint.save(len(curve), metrics={"loss": curve[-1]}, extra=curve)
        accuracy = evaluate(model, images[TRAINING:].to(device), digits[TRAINING:].to(device))
        if hvd.rank() == 0:
            print(f"epoch {epoch + 1}: loss {curve[-1]:.4f}, accuracy {accuracy:.3f}", flush=True)
    if checkpoint:
        checkpoint.wait()
    if options.curve and hvd.rank() == 0:
        options.curve.write_text(json.dumps(curve))
    hvd.shutdown()


def network(dtype: torch.dtype) -> torch.nn.Module:
    """64-32-10 with tanh; its weights are drawn by NumPy, for other frameworks to draw the same."""
    draw = np.random.default_rng(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)).to(dtype)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            shape = layer.in_features, layer.out_features
            layer.weight.copy_(torch.from_numpy(draw.normal(0.0, 0.1, shape).T))
            layer.bias.zero_()
    return model


@torch.no_grad()
def evaluate(model: torch.nn.Module, images: torch.Tensor, digits: torch.Tensor) -> float:
    """Accuracy over the validation set, of which each rank takes a share."""
    right = (model(images[hvd.rank() :: hvd.size()]).argmax(1) == digits[hvd.rank() :: hvd.size()]).double()
    return hvd.metric_average(right.mean().item(), len(right))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--amp", action="store_true", help="compute in float16, with a GradScaler")
    parser.add_argument("--compression", default="none", help="such as fp16 (default: none)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"), help="of the weights")
    parser.add_argument(
        "--state", type=Path, help="go on from the checkpoints in this directory, and save there"
    )
    parser.add_argument("--save-steps", type=int, default=10, help="updates between saves (default: 10)")
    parser.add_argument("--curve", type=Path, help="rank 0 writes the loss of every update here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
