"""Adasum or a mean, loaders with workers that a fork server starts, a checkpoint that rank 0 goes on from."""

import argparse
import os

import horovod.torch as hvd
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
import torch.utils.data.distributed
from sklearn.datasets import load_digits
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--use-adasum", action="store_true")
parser.add_argument("--gradient-predivide-factor", type=float, default=1.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, kernel_size=3)
        self.fc1 = nn.Linear(288, 10)

    def forward(self, x):
        x = F.dropout(F.relu(self.conv1(x)).flatten(1), 0.1, training=self.training)
        return F.log_softmax(self.fc1(x), dim=1)


class Digits(torch.utils.data.Dataset):
    def __init__(self, rows):
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images[rows] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        self.labels = torch.tensor(labels[rows])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


def metric_average(val, name):
    avg_tensor = hvd.allreduce(torch.tensor(val), name=name)
    return avg_tensor.item()


def main(args):
    hvd.init()
    torch.manual_seed(42)
    # Horovod: limit # of CPU threads to be used per worker.
    torch.set_num_threads(1)
    kwargs = {"num_workers": 1}
    # When supported, use 'forkserver' to spawn dataloader workers instead of 'fork'.
    if (
        hasattr(mp, "_supports_context")
        and mp._supports_context
        and "forkserver" in mp.get_all_start_methods()
    ):
        kwargs["multiprocessing_context"] = "forkserver"
    train_dataset = Digits(slice(0, 512))
    train_sampler = torch.utils.data.distributed.DistributedSampler(
        train_dataset, num_replicas=hvd.size(), rank=hvd.rank()
    )
    train_loader = torch.utils.data.DataLoader(train_dataset, batch_size=32, sampler=train_sampler, **kwargs)
    model = Net()
    # By default, Adasum doesn't need scaling up learning rate.
    lr_scaler = hvd.size() if not args.use_adasum else 1
    if args.use_adasum and hvd.nccl_built():
        lr_scaler = hvd.local_size()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * lr_scaler, momentum=0.5)
    optimizer = hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.none,
        op=hvd.Adasum if args.use_adasum else hvd.Average,
        gradient_predivide_factor=args.gradient_predivide_factor,
    )
    # Restore on the first worker, which will broadcast weights to other workers.
    resume_from_epoch = 1 if os.path.exists("torch-1.pt") else 0
    resume_from_epoch = hvd.broadcast(
        torch.tensor(resume_from_epoch), root_rank=0, name="resume_from_epoch"
    ).item()
    if resume_from_epoch > 0 and hvd.rank() == 0:
        checkpoint = torch.load("torch-1.pt")
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    # Horovod: broadcast parameters & optimizer state.
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    first = None
    for epoch in range(resume_from_epoch, 3):
        model.train()
        train_sampler.set_epoch(epoch)
        for data, target in train_loader:
            optimizer.zero_grad()
            loss = F.nll_loss(model(data), target)
            first = first or loss.item()
            loss.backward()
            optimizer.step()
        if epoch == 0 and hvd.rank() == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "torch-1.pt")
    name = f"torch{int(args.use_adasum)}{resume_from_epoch}"
    print(f"RESULT {hvd.rank()} {name}_first {metric_average(first, 'first')}", flush=True)
    print(f"RESULT {hvd.rank()} {name}_last {metric_average(loss.item(), 'last')}", flush=True)
    weights = sum(p.detach().double().abs().sum().item() for p in model.parameters())
    print(f"RESULT {hvd.rank()} {name}_weights {weights!r}", flush=True)


if __name__ == "__main__":
    main(parser.parse_args())
