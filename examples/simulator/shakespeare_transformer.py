"""A character model of torch's own transformer layers, trained by clients that each hold a stretch of a text."""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gradwire.federated import own_task, simulate

LENGTH = 64


class Model(nn.Module):
    """Predict each next character from those before it."""

    def __init__(self, num_characters: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(num_characters, 64)
        self.positions = nn.Embedding(LENGTH, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, num_characters)

    def forward(self, contexts: torch.Tensor) -> torch.Tensor:
        """(n, LENGTH) -> (n, LENGTH, num_characters)."""
        hidden = self.characters(contexts) + self.positions.weight
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, device=contexts.device)
        return self.head(self.layers(hidden, mask=mask, is_causal=True))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("file", type=Path)
parser.add_argument("--rounds", type=int, default=100)
parser.add_argument("--rows", type=int, default=8000)
parser.add_argument("--out")
args = parser.parse_args()

text = args.file.read_text(encoding="utf-8")
characters = sorted(set(text))
codes = np.array([characters.index(c) for c in text[: (args.rows + 200) * LENGTH + 1]])
contexts, nexts = (codes[i : i + (args.rows + 200) * LENGTH].reshape(-1, LENGTH) for i in (0, 1))

# ---- from here on it is federated
task = own_task(
    lambda: Model(len(characters)),
    train=(contexts[:-200], nexts[:-200]),
    test=(contexts[-200:], nexts[-200:]),
    clients=np.array_split(np.arange(len(contexts) - 200), 8),
    name="characters",
)
methods = ["dense()", "ef(topk(0.02) | fractional(16))"]
results = simulate(task, methods, clients=8, partition="natural", rounds=args.rounds, learning_rate=0.5, out=args.out)
for run in results.runs:
    print(f"{run['label']:36} {run['final_accuracy']:.3f} {run['uplink_bytes']:11,} bytes up")
