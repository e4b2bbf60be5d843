"""sleep_worker.py: rank 0 waits two seconds for rank 1, and its thread computes next to nothing meanwhile."""

import time

import horovod.torch as hvd
import torch

hvd.init()
if hvd.rank() == 1:
    time.sleep(2.0)
handle = hvd.allreduce_async(torch.ones(3), op=hvd.Sum, name="sum")
before = time.thread_time()
assert hvd.synchronize(handle).tolist() == [2.0] * 3
assert time.thread_time() - before < 0.5
hvd.shutdown()
