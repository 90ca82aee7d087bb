"""What the processes of test_ddp_faults.py do: each function runs in all of them at once."""

from __future__ import annotations

import copy
import io
import pickle
import time
import warnings
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ddp_cases import Net, batch, digest, net
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from gradwire.ddp import CommState, LocalSGD, hook, register
from gradwire.ddp.cost import Link
from gradwire.ddp.exchange import Exchange


def over(seconds_a_byte: float, make: Any) -> Any:
    """Make something that measures its link, and finds this."""
    measured = Exchange.link
    Exchange.link = lambda self: Link(0.0, seconds_a_byte)
    try:
        return make()
    finally:
        Exchange.link = measured


def said_by(action: Any) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


def step_of(model: Any, step: int, inputs: Any = None) -> Any:
    return lambda: model(batch(step) if inputs is None else inputs).square().sum().backward()


# --- local steps ----------------------------------------------------------------------------------


def small_steps(dtype: torch.dtype, num_steps: int) -> dict[str, Any]:
    """Each worker moves a coordinate of its own by the least that its model can hold."""
    module = nn.Linear(3, 1, bias=False).to(dtype)
    nn.init.ones_(module.weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    with LocalSGD(module, optimizer, "ef(topk(0.34))", 1, fallback=False) as local:
        for _ in range(num_steps):
            module.weight.grad = torch.zeros_like(module.weight)
            module.weight.grad[0, dist.get_rank()] = -(2.0**-7)
            optimizer.step()
    state = local.state_dict()
    return {
        "model": module.weight.detach().float().numpy().copy(),
        "residual": state["residual"],
        "all": state["before"],
    }


def frozen() -> dict[str, Any]:
    """Other models at the beginning, of which not all is trained."""
    torch.manual_seed(dist.get_rank())
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).bfloat16()
    module[0].requires_grad_(False)
    module.register_buffer("table", torch.arange(4) + dist.get_rank())
    module.register_buffer("flag", torch.tensor(dist.get_rank() == 0))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with LocalSGD(module, optimizer, "ef(topk(0.1))", 2, fallback=False):
        for step in range(2):
            optimizer.zero_grad()
            module(batch(step).flatten(1)[:, :6].bfloat16()).square().sum().backward()
            optimizer.step()
    return {name: value.float().numpy().copy() for name, value in module.state_dict().items()}


def local_resumed(when: str) -> list[str]:
    """Saved between two exchanges; the model is loaded before LocalSGD is made, or after its state."""

    def fresh():
        module = net()
        return module, torch.optim.SGD(module.parameters(), lr=0.01)

    def run(module, optimizer, local, first, last):
        with local:
            for step in range(first, last):
                optimizer.zero_grad()
                module(batch(step)).square().sum().backward()
                optimizer.step()

    module, optimizer = fresh()
    local = LocalSGD(module, optimizer, "ef(topk(0.05))", 3, fallback=False)
    run(module, optimizer, local, 0, 5)
    file = io.BytesIO()
    torch.save((module.state_dict(), local.state_dict()), file)
    run(module, optimizer, local, 5, 9)
    file.seek(0)
    saved_model, saved = torch.load(file)
    again, optimizer = fresh()
    if when == "before":
        again.load_state_dict(saved_model)
    other = LocalSGD(again, optimizer, "ef(topk(0.05))", 3, fallback=False)
    other.load_state_dict(saved)
    if when == "after":
        again.load_state_dict(saved_model)
    run(again, optimizer, other, 5, 9)
    return [digest(module), digest(again)]


def local_refuses() -> list[str]:
    """Of a state that one alone loads, and of what is none."""
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    local = LocalSGD(module, optimizer, "ef(topk(0.05))", 3, fallback=False)
    state = local.state_dict()
    said = [said_by(lambda wrong=wrong: local.load_state_dict(wrong)) for wrong in ([], [None], "x", None, {}, [state])]
    if dist.get_rank() == 1:
        local.load_state_dict(state)
    said.append(said_by(local.sync))
    return said


def local_nan() -> dict[str, Any]:
    """A model that one bad batch made NaN: its worker begins again where all were."""
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.001)
    local = LocalSGD(module, optimizer, "ef(topk(0.1))", 4, fallback=False)
    said = []
    with local:
        for step in range(12):
            optimizer.zero_grad()
            bad = step == 2 and dist.get_rank() == 1
            module(batch(step) * (torch.inf if bad else 1)).square().sum().backward()
            said.append(said_by(optimizer.step))
    return {"said": said, "finite": all(bool(p.isfinite().all()) for p in module.parameters())}


# --- whole gradients ------------------------------------------------------------------------------


def momentum_where_whole_is_faster() -> dict[str, Any]:
    module = nn.Linear(20, 1, bias=False)
    model = DistributedDataParallel(module)
    state = over(0.0, lambda: register(model, "momentum_correction(topk(0.05), momentum=0.9)"))
    total = np.zeros(20)
    for _ in range(60):
        module.zero_grad()
        model(torch.ones(1, 20)).sum().backward()
        total += module.weight.grad.numpy().ravel()
    return {"total": total, "path": state.path}


class Hollow(nn.Module):
    """With a parameter of no numbers, of a dtype of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.none = nn.Linear(64, 4), nn.Parameter(torch.zeros(0, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x.flatten(1)) + self.none.sum().float()


def hollow() -> list[str]:
    torch.manual_seed(0)
    model = DistributedDataParallel(Hollow())
    state = over(0.0, lambda: register(model, "ef(topk(0.05))"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(8):
        optimizer.zero_grad()
        with warnings.catch_warnings(action="ignore"):
            step_of(model, step)()
        optimizer.step()
    return [state.path, digest(model.module)]


def warnings_are_errors() -> list[str]:
    """The notice that gradients travel whole from now on must not have one worker leave the step."""
    module = net()
    model = DistributedDataParallel(module)
    over(0.0, lambda: register(model, "ef(topk(0.05))"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    said = []
    with warnings.catch_warnings(action="error"):
        for step in range(8):
            optimizer.zero_grad()
            said.append(said_by(step_of(model, step)))
            if said[-1] == "fine":
                optimizer.step()
    return [*sorted(set(said)), digest(module)]


# --- errors, the same everywhere ------------------------------------------------------------------


def sparse_gradients() -> list[str]:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Embedding(20, 8, sparse=True), nn.Linear(8, 4)))
    register(model, "ef(topk(0.05))", fallback=False)
    said = []
    for _ in range(2):
        model.zero_grad()
        said.append(said_by(step_of(model, 0, torch.arange(4) + dist.get_rank())))
    return said


def states_of_other_runs(spec: str, seeds: tuple[int, int]) -> list[str]:
    """Worker 0 goes on from one run, the others from another of the same spec and step."""

    def made(seed: int):
        model = DistributedDataParallel(net())
        return model, register(model, spec, fallback=False, seed=seed)

    states = []
    for number, seed in enumerate(seeds):
        model, state = made(seed)
        for step in range(3):
            step_of(model, 10 * number + step)()
        states.append(state.state_dict())
        state.close()
    model, state = made(0)
    state.load_state_dict(states[int(dist.get_rank() > 0)])
    said = [said_by(step_of(model, 5)), said_by(step_of(model, 6))]
    return [text.partition(" at worker")[0] for text in said]


def one_loads(spec: str, num_steps: int) -> list[str]:
    model = DistributedDataParallel(net())
    state = register(model, spec, fallback=False)
    for step in range(num_steps):
        step_of(model, step)()
    saved = state.state_dict()
    state.close()
    model = DistributedDataParallel(net())
    state = register(model, spec, fallback=False)
    if dist.get_rank() == 0:
        state.load_state_dict(saved)
    return [said_by(step_of(model, step)) for step in (7, 8)]


def a_bad_state_before_the_first_step(named: bool) -> list[str]:
    """Of a bare pair of state and hook, which loads only when the workers meet; then a good one, by all."""

    def made():
        module = net()
        model = DistributedDataParallel(module)
        state = CommState("ef(topk(0.05))", module if named else None, fallback=False)
        model.register_comm_hook(state, hook)
        return model, state

    model, state = made()
    step_of(model, 0)()
    saved = state.state_dict()
    model, state = made()
    state.load_state_dict({**saved, "spec": "dense()"} if dist.get_rank() == 1 else saved)
    said = [said_by(step_of(model, 1))]
    state.load_state_dict(saved)
    return [*said, said_by(step_of(model, 2)), str(state.step)]


def left_with_an_error() -> tuple[str, bool]:
    """One worker leaves the context by an error of its own: nobody waits until the group's timeout."""
    model = DistributedDataParallel(net())
    start = time.perf_counter()

    def run():
        with register(model, "ef(topk(0.05))", fallback=False):
            for step in range(4):
                if step == 2 and dist.get_rank() == 1:  # in the second one DDP exchanges its own buckets' order
                    raise ValueError("bad data")
                step_of(model, step)()

    return said_by(run).partition(":")[0], time.perf_counter() - start < 40  # of 60


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(400, dtype=torch.float16))
        self.b = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.w * x).sum() + 1e6 * self.b.sum()


def half() -> dict[str, Any]:
    """What is gathered until it is sent is more than float16 holds in the end."""
    module = Half()
    model = DistributedDataParallel(module)
    state = register(model, "ef(topk(0.01))", fallback=False)
    said, sent, before = [], np.zeros(403), np.zeros(403)
    for _ in range(60):
        module.zero_grad()
        before = state.state_dict()["residual"] if state.step else before
        text = said_by(lambda: model(torch.full((400,), 2000.0, dtype=torch.float16)).backward())
        said.append(text)
        if text != "fine":
            break
        sent += np.concatenate([module.w.grad.float().numpy(), module.b.grad.numpy()])
    kept = bool(np.allclose(state.state_dict()["residual"], before, rtol=1e-5))
    return {"said": said[-1], "steps": len(said), "finite": bool(np.isfinite(sent).all()), "kept": kept}


def joined_early() -> dict[str, Any]:
    """A bad gradient where one worker has no more steps to make."""
    module = net()
    model = DistributedDataParallel(module, bucket_cap_mb=0.004)
    state = register(model, "ef(topk(0.05))", fallback=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    said = []
    with Join([model]):
        for step in range(3 + 3 * min(1, dist.get_rank())):
            optimizer.zero_grad()
            said.append(said_by(step_of(model, step, batch(step) * (torch.inf if step == 4 else 1))))
            if said[-1] == "fine":
                optimizer.step()
    return {"said": said, "step": state.step, "hash": digest(module)}


def copied() -> list[str]:
    """As before a hook: a DDP model can be copied and pickled."""
    model = DistributedDataParallel(net())
    state = register(model, "ef(topk(0.05))", fallback=False, on_nonfinite="propagate")
    step_of(model, 0)()
    found = pickle.loads(pickle.dumps(state))
    also = copy.deepcopy(state)
    return [f"{one.compressor} {one.step} {one._propagates}" for one in (found, also)]


def frozen_later() -> list[str]:
    module = net()
    model = DistributedDataParallel(module, find_unused_parameters=True)
    module.one.bias.requires_grad_(False)
    register(model, "ef(topk(0.05))", fallback=False)
    said = [said_by(step_of(model, 0))]
    module = net()
    names = {"delay_all_reduce_named_params": [("one.bias", module.one.bias)]}
    model = DistributedDataParallel(module, **names, param_to_hook_all_reduce=module.two.weight)
    return [*said, said_by(lambda: register(model, "ef(topk(0.05))"))]


class Shard(Net):
    """A tensor-parallel part: plain tensors, other numbers at each of the processes that share the model."""


def parts_of_a_model() -> dict[str, Any]:
    """Process 2 holds another part of the model than 0 and 1, which are two workers of the first part."""
    part = 1 if dist.get_rank() == 2 else 0
    groups = [dist.new_group([0, 1]), dist.new_group([2])]
    torch.manual_seed(part)
    module = Shard()
    model = DistributedDataParallel(module, process_group=groups[part])
    register(model, "ef(topk(0.05))", fallback=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(4):
        optimizer.zero_grad()
        step_of(model, step)()
        optimizer.step()
    return {"part": part, "hash": digest(module)}
