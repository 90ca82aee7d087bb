"""Accelerate: one line after prepare has gradients travel compressed.

pip install 'gradwire[torch]' accelerate
torchrun --nproc-per-node 2 with_accelerate.py
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradwire.ddp import register


def main() -> None:
    """Train with the workers that torchrun started, on the CPU."""
    torch.manual_seed(0)
    inputs = torch.randn(512, 64)
    data = DataLoader(TensorDataset(inputs, inputs[:, :10].argmax(1)), batch_size=16)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    accelerator = Accelerator(cpu=True)
    model, optimizer, data = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    # without fallback=False gradients as small as these are soon sent whole, which is faster
    comm = register(model, "ef(topk(0.01) | fractional(16))", fallback=False)
    for _ in range(2):
        for batch, targets in data:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(batch), targets))
            optimizer.step()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    told = f"worker {accelerator.process_index}: {comm.step} steps, {comm.bytes_sent} bytes"
    print(f"{told}, parameters sum to {flat.double().sum():.12f}\n", end="", flush=True)
    comm.close()
    accelerator.end_training()


if __name__ == "__main__":
    main()
