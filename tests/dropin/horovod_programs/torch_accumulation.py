"""Large batches in parts, a rate that warms up, a checkpoint: in the manner of Horovod's ImageNet guide."""

import math
import tempfile
from pathlib import Path

import horovod.torch as hvd
import torch
from sklearn.datasets import load_digits
from torch import nn

PARTS, PART = 3, 16

hvd.init()
torch.manual_seed(7)
torch.set_num_threads(1)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images / 16
model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
# No decay: Horovod's broadcast_optimizer_state steps a new optimizer to make its state, and would decay.
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
optimizer = hvd.DistributedOptimizer(
    optimizer,
    named_parameters=model.named_parameters(),
    backward_passes_per_step=PARTS,
    op=hvd.Average,
)
folder = Path(tempfile.gettempdir()) / f"hvd-{hvd.broadcast_object(id(model), root_rank=0)}.pt"
first = hvd.broadcast(torch.tensor(0), root_rank=0, name="resume_from_epoch").item()
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
# The last batch has fewer parts than the others.
share = torch.arange(hvd.rank(), 400, hvd.size())
step = 0
for epoch in range(first, 3):
    for batch in share.split(PARTS * PART):
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * min(1.0, step / 5) * hvd.size()
        optimizer.zero_grad()
        for part in batch.split(PART):
            loss = nn.functional.cross_entropy(model(images[part]), labels[part])
            loss.div_(math.ceil(len(batch) / PART))
            loss.backward()
        optimizer.step()
    if hvd.rank() == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder)
    if epoch == 1:
        hvd.allreduce(torch.ones(1), name="saved")
        state = torch.load(folder)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        hvd.allreduce(torch.ones(1), name="loaded")
if hvd.rank() == 0:
    folder.unlink()
with torch.no_grad():
    loss = nn.functional.cross_entropy(model(images), labels)
print(f"RESULT {hvd.rank()} accumulated {loss.item()}", flush=True)
