"""torch_leaving.py HOW: rank 1 leaves a loop early, at its third step, while rank 0 goes on."""

from __future__ import annotations

import sys

import torch

import hvdtrain.torch as hvd
from tests.dropin.trial import batch, mean_loss, mlp, sgd
from tests.jobs.runs import start_sooner


def main(how: str) -> None:
    hvd.init()
    torch.set_num_threads(1)
    model = mlp()
    optimizer = hvd.DistributedOptimizer(sgd(model.parameters()), model.named_parameters())
    for update in range(6):
        if update == 2 and hvd.rank() == 1:
            if how == "raise":
                raise RuntimeError("no space left for rank 1")
            if how == "wait":
                hvd.allreduce(torch.ones(1), name="what rank 0 never asks for")
            return
        optimizer.zero_grad()
        mean_loss(model, *batch((update, hvd.rank(), 0), 2, torch.float64)).backward()
        optimizer.step()


if __name__ == "__main__":
    start_sooner()
    main(sys.argv[1])
