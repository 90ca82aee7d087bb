"""Data and model: a perceptron, and each client's share of the images."""

from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from flwr.app import UserConfig
from torch.nn.functional import cross_entropy

from gradwire.federated.data.tasks import Task, load_task


@lru_cache(maxsize=1)
def load(name: str, folder: str) -> Task:
    """Read the data set."""
    return load_task(name, None if folder == "-" else Path(folder))


def task_of(config: UserConfig) -> Task:
    """Read the data set that the run is about."""
    return load(str(config["data"]), str(config["data-dir"]))


def make_net(config: UserConfig) -> torch.nn.Module:
    """Make the model, the same at all ends."""
    torch.manual_seed(int(config["seed"]))
    task = task_of(config)
    widths = [task.train_inputs[0].numel(), *map(int, str(config["hidden"]).split(","))]
    layers: list[torch.nn.Module] = [torch.nn.Flatten()]
    for num_inputs, num_outputs in pairwise(widths):
        layers += [torch.nn.Linear(num_inputs, num_outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], task.num_classes))


def train(net: torch.nn.Module, config: UserConfig, partition: int, server_round: int) -> tuple[int, float]:
    """Train on one client's images; their number, and the mean loss."""
    task, num_clients = task_of(config), int(config["num-clients"])
    inputs, targets = task.train_inputs[partition::num_clients], task.train_targets[partition::num_clients]
    optimizer = torch.optim.SGD(net.parameters(), lr=float(config["learning-rate"]))
    seed = 1_000_000 * int(config["seed"]) + 1000 * server_round + partition
    generator = torch.Generator().manual_seed(seed)
    losses = []
    net.train()
    for _ in range(int(config["local-epochs"])):
        for batch in torch.randperm(len(inputs), generator=generator).split(int(config["batch-size"])):
            optimizer.zero_grad()
            loss = cross_entropy(net(inputs[batch]), targets[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return len(inputs), sum(losses) / len(losses)


@torch.no_grad()
def accuracy(net: torch.nn.Module, config: UserConfig) -> float:
    """Measure the accuracy on the images held out."""
    task = task_of(config)
    net.eval()
    return float((net(task.test_inputs).argmax(1) == task.test_targets).float().mean())
