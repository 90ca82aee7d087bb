"""CIFAR-10 with a CNN of one's own, BatchNorm included, on devices that see some kinds of images more than others."""

import argparse
import lzma
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gradwire.federated import own_task, simulate


class Net(nn.Module):
    """Three convolutions, halving the image each time."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        before = 3
        for after in (32, 64, 64):
            self.stages.append(
                nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU())
            )
            before = after
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, 32, 32) -> (n, 10)."""
        for stage in self.stages:
            images = stage(images)
        return self.head(images.mean((2, 3)))


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a file of CIFAR-10's binary version, perhaps packed."""
    data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    rows = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 127.5 - 1, rows[:, 0].astype(np.int64)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path)
parser.add_argument("--rounds", type=int, default=100)
parser.add_argument("--examples", type=int, default=20_000)
parser.add_argument("--out")
args = parser.parse_args()

first, *others = (read(path) for path in sorted(args.folder.glob("data_batch_*.bin*"))[:3])
images, labels = (np.concatenate(arrays)[: args.examples] for arrays in zip(*others, strict=True))

# ---- from here on it is federated
task = own_task(Net, train=(images, labels), test=(first[0][:2000], first[1][:2000]), name="cifar10 with BatchNorm")
results = simulate(
    task,
    ["dense()", "ef(topk(0.02) | fractional(16))"],
    clients=10,
    partition="dirichlet:0.5",
    rounds=args.rounds,
    learning_rate=0.1,
    out=args.out,
)
for run in results.runs:
    print(f"{run['label']:36} {run['final_accuracy']:.3f} {run['uplink_bytes']:11,} bytes up")
