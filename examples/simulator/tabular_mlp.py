"""Does a tumour mean harm? A small network on 30 numbers, trained by six hospitals that keep their patients' data."""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from gradwire.federated import own_task, simulate


def make_model() -> nn.Module:
    """A perceptron of two hidden layers."""
    return nn.Sequential(
        nn.Linear(30, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0)
    )


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a single output, harm counting twice."""
    return nn.functional.binary_cross_entropy_with_logits(outputs, targets, pos_weight=torch.tensor(2.0))


def share_right(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The share of patients that are told right."""
    return ((outputs > 0) == (targets > 0.5)).float().mean()


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rounds", type=int, default=60)
parser.add_argument("--out")
args = parser.parse_args()

data = load_breast_cancer()
inputs = ((data.data - data.data.mean(0)) / data.data.std(0)).astype(np.float32)
harm = 1.0 - data.target.astype(np.float32)
order = np.random.default_rng(0).permutation(len(inputs))
train, test = order[:450], order[450:]

# ---- from here on it is federated
hospitals = np.array_split(np.argsort(inputs[train, 0]), 6)  # each sees tumours of another size
task = own_task(
    make_model,
    train=(inputs[train], harm[train]),
    test=(inputs[test], harm[test]),
    loss=loss,
    metric=share_right,
    clients=hospitals,
    name="tumours",
)
methods = ["dense()", "ef(topk(0.05))", "ef(topk(0.05) | fractional(16))"]
results = simulate(
    task, methods, clients=6, partition="natural", rounds=args.rounds, learning_rate=0.05, batch_size=16, out=args.out
)
for run in results.runs:
    print(f"{run['label']:36} {run['final_accuracy']:.3f} {run['uplink_bytes']:9,} bytes up")
