"""A GradScaler with clipping by Horovod's recipe, a half-precision wire, ranks that join."""

import horovod.torch as hvd
import torch
from sklearn.datasets import load_digits
from torch import nn

hvd.init()
torch.manual_seed(3)
torch.set_num_threads(1)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
optimizer = hvd.DistributedOptimizer(
    torch.optim.Adam(model.parameters(), lr=0.005),
    named_parameters=model.named_parameters(),
    compression=hvd.Compression.fp16,
)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
# Rank 1 has two batches less.
for step in range(12 - 2 * hvd.rank()):
    rows = slice(64 * step + 32 * hvd.rank(), 64 * step + 32 * hvd.rank() + 32)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
    scaler.scale(loss).backward()
    optimizer.synchronize()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    with optimizer.skip_synchronize():
        scaler.step(optimizer)
    scaler.update()
hvd.join()
# From here on with names: Horovod numbers those without, and the ranks have counted differently.
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
with torch.no_grad():
    mine = model(images[1000 + hvd.rank() :: hvd.size()]).argmax(1)
every = hvd.synchronize(hvd.allgather_async(mine, name="predictions"))
truth = hvd.allgather(labels[1000 + hvd.rank() :: hvd.size()].contiguous(), name="labels")
weights = hvd.allreduce_(model[0].weight.detach().abs().mean()[None], op=hvd.Sum, name="weights")
print(f"RESULT {hvd.rank()} accuracy {(every == truth).double().mean().item()}", flush=True)
print(f"RESULT {hvd.rank()} weights {weights.item()}", flush=True)
