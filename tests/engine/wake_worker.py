"""wake_worker.py: collectives one after another, however long Horovod's cycle is."""

import horovod.torch as hvd
import torch

hvd.init()
for index in range(20):
    total = hvd.allreduce(torch.ones(3), op=hvd.Sum, name=f"sum{index}")
    assert total.tolist() == [float(hvd.size())] * 3
together = [hvd.allreduce_async(torch.ones(1), op=hvd.Sum, name=f"together{i}") for i in range(20)]
assert [hvd.synchronize(handle).item() for handle in together] == [float(hvd.size())] * 20
hvd.shutdown()
