"""A small GPT-2 of transformers, pretrained here on some of the speakers; others tune all of it, or adapters alone.

Nothing is downloaded: the model is made from its config, and its vocabulary is the play's characters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import results
from gradwire.federated import own_task
from gradwire.federated.data.models import cross_entropy
from gradwire.federated.data.task import Task

LENGTH, FEATURES, LAYERS, HEADS, RANK = 64, 128, 5, 4, 4
STEPS, BATCH, RATE = 800, 16, 1e-3
TUNERS = 1 / 3  # of the windows: those of the speakers who come first, who tune; the rest is for pretraining
FEWEST = 20  # windows of a speaker who tunes
BASE = "base.safetensors"


class Logits(nn.Module):
    """A model of transformers that gives a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, contexts: Tensor) -> Tensor:
        """Contexts (n, length) -> logits (n, length, characters)."""
        logits: Tensor = self.model(input_ids=contexts).logits
        return logits


def gpt2(num_characters: int) -> Any:
    """Make the model, drawing from torch's generator."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_positions": LENGTH, "n_embd": FEATURES, "n_layer": LAYERS, "n_head": HEADS}
    nothing = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    config = GPT2Config(vocab_size=num_characters, use_cache=False, attn_implementation="eager", **shape, **nothing)
    return GPT2LMHeadModel(config)


def with_adapters(model: Any) -> Any:
    """Freeze a model and put adapters beside all matrices of its layers."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
    )
    return get_peft_model(model, config)


def task(whole: Task, adapters: bool) -> tuple[Task, dict[str, Any]]:
    """Make the task of the speakers who tune, with the last tenth of each held out.

    Args:
        whole: task shakespeare.
        adapters: whether they alone are trained.

    Returns:
        The task, and what the page says of it.
    """
    groups = np.asarray(whole.groups)
    tuners = groups < _first(groups)
    base = pretrained(whole.train_inputs[~tuners], whole.train_targets[~tuners], whole.num_classes)

    def build() -> nn.Module:
        model = gpt2(whole.num_classes)
        model.load_state_dict(base, strict=False)  # what is tied is there once
        return Logits(with_adapters(model) if adapters else model)

    train, test, clients = split(groups, _first(groups))
    held_out = whole.train_inputs[test], whole.train_targets[test]
    made = own_task(
        build,
        (whole.train_inputs[train], whole.train_targets[train]),
        held_out,
        clients=clients,
        name="lora" if adapters else "full",
        test_name="held-out windows",
    )
    parameters = list(build().parameters())
    about = {
        "num_parameters": sum(p.numel() for p in parameters),
        "num_trained": sum(p.numel() for p in parameters if p.requires_grad),
        "num_windows": len(train),
        "num_test_windows": len(test),
        "num_speakers": len(clients),
        "start_loss": _loss(build(), *held_out),
    }
    return made, about


def split(groups: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Rows to train on and to test on of the speakers below ``first``, and which of the former are whose.

    The last tenth of what a speaker says is held out; every other window of that is tested on.
    """
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    clients: list[np.ndarray] = []
    for speaker in range(first):
        rows = np.flatnonzero(groups == speaker)
        if len(rows) < FEWEST:
            continue
        cut = len(rows) - len(rows) // 10
        begin = sum(map(len, train))
        clients.append(np.arange(begin, begin + cut))
        train.append(rows[:cut])
        test.append(rows[cut:])
    return np.concatenate(train), np.concatenate(test)[::2], clients


def pretrained(inputs: Tensor, targets: Tensor, num_characters: int) -> dict[str, Tensor]:
    """Train the model on its own for a while, or read what an earlier call left."""
    path = results.ROOT / "runs" / "language" / BASE
    if path.is_file():
        return load_file(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = gpt2(num_characters)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        for _ in range(STEPS):
            rows = torch.randint(len(inputs), (BATCH,))
            optimizer.zero_grad()
            cross_entropy(model(input_ids=inputs[rows]).logits, targets[rows]).backward()
            optimizer.step()
    state = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    save_file(state, new)
    new.replace(path)
    return state


def _first(groups: np.ndarray) -> int:
    """The first speaker who does not tune."""
    return int(np.searchsorted(np.cumsum(np.bincount(groups)), TUNERS * len(groups))) + 1


@torch.no_grad()
def _loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    return float(cross_entropy(model.eval()(inputs), targets))
