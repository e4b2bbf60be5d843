"""Epochs over a sampler, a metric averaged by hand: the first program of Horovod's PyTorch guide."""

import horovod.torch as hvd
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

hvd.init()
torch.manual_seed(42 + hvd.rank())
torch.set_num_threads(1)
if torch.cuda.is_available():
    torch.cuda.set_device(hvd.local_rank())
images, labels = map(torch.tensor, load_digits(return_X_y=True))
train = TensorDataset(images[:600] / 16, labels[:600])
sampler = DistributedSampler(train, num_replicas=hvd.size(), rank=hvd.rank(), shuffle=False)
loader = DataLoader(train, batch_size=32, sampler=sampler)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02 * hvd.size(), momentum=0.5)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
compression = hvd.Compression.none
optimizer = hvd.DistributedOptimizer(
    optimizer,
    named_parameters=model.named_parameters(),
    compression=compression,
    op=hvd.Average,
    gradient_predivide_factor=1.0,
)
for epoch in range(2):
    sampler.set_epoch(epoch)
    for data, target in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data), target)
        loss.backward()
        optimizer.step()
with torch.no_grad():
    output = model(images[600 + hvd.rank() :: hvd.size()] / 16)
    loss = nn.functional.cross_entropy(output, labels[600 + hvd.rank() :: hvd.size()])
print(f"RESULT {hvd.rank()} loss {hvd.allreduce(loss, name='avg_loss').item()}", flush=True)
