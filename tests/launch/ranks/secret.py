"""A rank that notes what it was told in private, and what its launcher's server is reached at."""

import os
import sys
from pathlib import Path

import horovod.torch as hvd
import torch

hvd.init()
total = hvd.allreduce(torch.ones(1), op=hvd.Sum, name="total").item()
told = ("HOROVOD_JOB_SECRET", "HF_TOKEN", "LINES_OF_TEXT", "HOROVOD_GLOO_RENDEZVOUS_ADDR")
note = "\0".join([str(total), *(os.environ.get(name, "") for name in told)])
Path(sys.argv[1], str(hvd.rank())).write_text(note)
