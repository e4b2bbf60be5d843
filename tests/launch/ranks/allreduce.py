"""A rank that sums (rank + 1) * [0, 1, 2, 3] over all ranks and prints the sum, its wire, host and folder."""

import socket
from pathlib import Path

import horovod.torch as hvd
import numpy as np
import torch

hvd.init()
mine = torch.from_numpy(np.arange(4.0) * (hvd.rank() + 1))
total = hvd.allreduce(mine, op=hvd.Sum, name="total").tolist()
wire = "mpi" if hvd.mpi_enabled() else "gloo"
print(f"RESULT {hvd.rank()}/{hvd.size()} {wire} {total} {socket.gethostname()} {Path.cwd()}", flush=True)
