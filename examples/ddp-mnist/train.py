"""Train a small network on MNIST with several processes that exchange compressed gradients.

torchrun --nproc-per-node 2 train.py --spec "ef(topk(0.01) | fractional(16))"

It goes on where it was stopped: every worker keeps its own state beside the model's.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from gradwire.ddp import register
from gradwire.federated.data.tasks import load_task

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--spec", default="ef(topk(0.01) | fractional(16))", help="a compressor, or 'none'")
parser.add_argument("--data", default="mnist", help="mnist, in the folder $GRADWIRE_DATA; or digits, which needs none")
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--batch", type=int, default=32, help="examples of each worker in a step")
parser.add_argument("--save-every", type=int, default=100)
parser.add_argument("--repeatable", action="store_true", help="never change to whole gradients, whatever is faster")
parser.add_argument("--folder", type=Path, help="where states are kept, and looked for")
options = parser.parse_args()

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)
torch.manual_seed(0)
with warnings.catch_warnings(action="ignore"):
    task = load_task(options.data)
module = nn.Sequential(nn.Flatten(), nn.Linear(task.train_inputs[0].numel(), 128), nn.ReLU(), nn.Linear(128, 10))
model = DistributedDataParallel(module)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
state = None
if options.spec != "none":
    state = register(model, options.spec, fallback=not options.repeatable)  # all there is to it

first = 0
kept: dict[int, Path] = {}  # this worker's states, by step
if options.folder is not None:
    kept = {int(path.stem.rpartition("-")[2]): path for path in options.folder.glob(f"worker-{rank}-step-*.pt")}
    everyone: list[set[int]] = [set()] * world
    dist.all_gather_object(everyone, set(kept))
    if common := set.intersection(*everyone):  # a crash while states were written leaves some workers with one more
        first = max(common)
        saved = torch.load(kept[first])
        module.load_state_dict(saved["model"])
        if state is not None:
            state.load_state_dict(saved["exchange"])

for step in range(first, options.steps):
    if options.folder is not None and step % options.save_every == 0 and step > first:
        path = options.folder / f"worker-{rank}-step-{step}.pt"
        exchange = None if state is None else state.state_dict()
        torch.save({"model": module.state_dict(), "exchange": exchange}, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
        dist.barrier()  # from here on all have this one, and need none before
        for other in set(kept) - {step}:
            kept.pop(other).unlink()
        kept[step] = path
    if os.environ.get("STOP_AT") == str(step) and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and rank == 1:
        os.kill(os.getpid(), 9)  # what a crash would do
    generator = torch.Generator().manual_seed(1000 * step + rank)
    chosen = torch.randint(len(task.train_inputs), (options.batch,), generator=generator)
    optimizer.zero_grad()
    cross_entropy(model(task.train_inputs[chosen]), task.train_targets[chosen]).backward()
    optimizer.step()

if rank == 0:
    with torch.no_grad():
        found = module(task.test_inputs).argmax(1)
    correct = (found == task.test_targets).float().mean()
    total = sum(p.double().sum() for p in module.parameters())
    sent = "" if state is None else f"; {state.bytes_sent / max(1, options.steps - first):,.0f} bytes a step"
    print(f"{world} workers: accuracy {correct:.4f}{sent}; parameters add up to {total.item()!r}")
dist.barrier()
dist.destroy_process_group()
