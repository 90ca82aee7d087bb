"""What the processes of the tests do: each function runs in all of them at once."""

from __future__ import annotations

import copy
import gc
import hashlib
import importlib
import os
import warnings
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import gradwire as gw
from gradwire.ddp import CommState, LocalSGD, hook, register
from gradwire.ddp.cost import Link
from gradwire.ddp.exchange import Exchange

HOOK: Any = importlib.import_module("gradwire.ddp.hook")  # the module, not the function
PAIR: Any = None  # the group of processes 0 and 1
D = 2411


class Net(nn.Module):
    """A convolution and two layers; the last one is left out where asked."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(1, 4, 3), nn.Linear(144, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, skip: bool = False) -> torch.Tensor:
        hidden = torch.tanh(self.one(torch.tanh(self.conv(x)).flatten(1)))
        return hidden if skip else self.two(hidden)


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """This rank's inputs."""
    generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
    return torch.randn(4, 1, 8, 8, generator=generator).to(dtype)


def flat_gradient(module: nn.Module) -> np.ndarray:
    pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    return torch.cat([p.detach().reshape(-1).float() for p in pieces]).numpy().copy()


def digest(module: nn.Module) -> str:
    numbers = torch.cat([p.detach().reshape(-1).float() for p in module.parameters()]).numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def recorded(exchange: Exchange) -> list[bytes]:
    """What this process tells the others from now on."""
    told: list[bytes] = []
    gather = exchange.gather

    def listening(message):
        told.append(message.body)
        return gather(message)

    exchange.gather = listening
    return told


def own_gradient(module: nn.Module, inputs: torch.Tensor, skip: bool = False) -> np.ndarray:
    """The gradient that this rank has before any exchange."""
    apart = copy.deepcopy(module)
    apart.zero_grad()
    apart(inputs, skip).square().sum().backward()
    return flat_gradient(apart)


def train(spec: str, num_workers: int, steps: int, options: dict[str, Any]) -> dict[str, Any] | None:
    """Train with a registered compressor: gradients before and after, blobs, parameters."""
    group = PAIR if num_workers == 2 else None
    if num_workers == 2 and dist.get_rank() > 1:
        return None
    options = dict(options)
    dtype = getattr(torch, options.pop("dtype", "float32"))
    module, bare, num_syncless = net(dtype), options.pop("bare", False), options.pop("no_sync", 0)
    on_host = HOOK._device_of
    if options.pop("device", False):  # as if gradients were on one
        HOOK._device_of = lambda named, compressor: torch.device("cpu")
    channels_last, unused = options.pop("channels_last", False), options.pop("unused", False)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    if unused:
        options["find_unused_parameters"] = True
    model = DistributedDataParallel(module, process_group=group, **options)
    if bare:
        state = CommState(spec, process_group=group, fallback=False)
        model.register_comm_hook(state, hook)
    else:
        state = register(model, spec, fallback=False)
    HOOK._device_of = on_host
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    own, given, hashes, paths, told = [], [], [], [], []
    listening: Any = None
    for step in range(steps):
        inputs = batch(step, dtype)
        if channels_last:
            inputs = inputs.to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        gradient = np.zeros(D, np.float32)
        for more in range(num_syncless):
            extra = batch(1000 + 10 * step + more, dtype)
            gradient += own_gradient(module, extra, unused)
            with model.no_sync():
                model(extra, unused).square().sum().backward()
        gradient += own_gradient(module, inputs, unused)
        if listening is None and state._worker is not None:
            listening = recorded(state._worker.exchange)
        paths.append(state.path)
        model(inputs, unused).square().sum().backward()
        told.append(listening.pop() if listening else None)
        own.append(gradient)
        given.append(flat_gradient(module))
        optimizer.step()
        hashes.append(digest(module))
    residual = state.state_dict()["residual"]
    names = [t.name for t in state._worker.layout.tensors]
    return {
        "own": own,
        "given": given,
        "told": told,
        "paths": paths,
        "hashes": hashes,
        "residual": residual,
        "names": names,
        "bytes_sent": state.bytes_sent,
    }


def uneven(spec: str) -> dict[str, Any]:
    """Workers with fewer steps than others wait inside of Join, and give what they still remember."""
    module = net()
    model = DistributedDataParallel(module, bucket_cap_mb=0.004)
    state = register(model, spec, fallback=False)
    total = np.zeros(D)
    given = np.zeros(D)
    with Join([model]):
        for step in range(2 + dist.get_rank()):
            module.zero_grad()
            total += own_gradient(module, batch(step))
            model(batch(step)).square().sum().backward()
            given += flat_gradient(module)
    return {"step": state.step, "total": total, "given": given, "residual": state.state_dict()["residual"]}


def bad_then_good(spec: str, bad_rank: int, on_nonfinite: str = "raise", dense: bool = False) -> dict[str, Any]:
    """A gradient that is not finite at one rank, in the middle of good ones."""
    module = net()
    model = DistributedDataParallel(module, bucket_cap_mb=0.004)
    measured = Exchange.link
    Exchange.link = lambda self: Link(0.0, 0.0 if dense else 1.0)
    try:
        state = register(model, spec, on_nonfinite=on_nonfinite)
    finally:
        Exchange.link = measured
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    own, given, hashes, errors, paths, said = [], [], [], [], [], []
    for step in range(8 if dense else 5):
        inputs = batch(step)
        bad = step in ((6,) if dense else (1, 3))
        optimizer.zero_grad()
        if bad and dist.get_rank() == bad_rank:
            inputs = inputs * torch.inf
        elif not bad:
            own.append(own_gradient(module, inputs))
        paths.append(state.path)
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                model(inputs).square().sum().backward()
            said += [str(warning.message) for warning in found]
        except gw.GradwireError as error:
            errors.append(f"{type(error).__name__}: {error}")
            continue
        gradient = flat_gradient(module)
        if bad:
            errors.append("NaN" if np.isnan(gradient).all() else "finite")
            continue
        given.append(gradient)
        optimizer.step()
        hashes.append(digest(module))
    return {
        "own": own,
        "given": given,
        "hashes": hashes,
        "errors": errors,
        "paths": paths,
        "said": said,
        "step": state.step,
        "residual": state.state_dict()["residual"],
    }


def registered_differently(what: str) -> str:
    """What register says where workers do not agree."""
    rank = dist.get_rank()
    model = DistributedDataParallel(net())
    spec, options = "ef(topk(0.1))", {}
    if what == "spec" and rank == 1:
        spec = "ef(topk(0.2))"
    elif what == "seed":
        options["seed"] = rank
    elif what == "fallback":
        options["fallback"] = rank == 0
    try:
        register(model, spec, **options)
    except gw.ConfigError as error:
        return str(error)
    return "registered"


def scaled(scales: list[float]) -> dict[str, Any]:
    """Losses times a scale that changes, with a residual; an Inf at one rank on the way."""
    module = net()
    model = DistributedDataParallel(module)

    class Scaler:
        scale = 1.0

        def get_scale(self):
            return self.scale

    scaler = Scaler()
    state = register(model, "ef(topk(0.05))", fallback=False, grad_scaler=scaler)
    own, given = [], []
    for step, scale in enumerate(scales):
        scaler.scale = scale
        module.zero_grad()
        own.append(own_gradient(module, batch(step)))
        inputs = batch(step) * (torch.inf if step == 2 and dist.get_rank() == 1 else 1)
        (model(inputs).square().sum() * scale).backward()
        given.append(flat_gradient(module) / scale)
    return {"own": own, "given": given, "residual": state.state_dict()["residual"]}


def resumed(spec: str, num_steps: int, save_at: int) -> dict[str, Any]:
    """Train on, and train on from a state that was saved on the way: the same hash."""

    def run(module, state, optimizer, model, first, last):
        saved = None
        for step in range(first, last):
            if step == save_at:
                saved = copy.deepcopy((module.state_dict(), state.state_dict() if state.step else None))
            optimizer.zero_grad()
            model(batch(step)).square().sum().backward()
            optimizer.step()
        return saved

    def fresh():
        module = net()
        model = DistributedDataParallel(module, bucket_cap_mb=0.004)
        state = register(model, spec, fallback=False)
        return module, state, torch.optim.SGD(model.parameters(), lr=0.05), model

    whole = fresh()
    saved_model, saved_state = run(*whole, 0, num_steps)
    again = fresh()
    again[0].load_state_dict(saved_model)
    again[1].load_state_dict(saved_state)
    run(*again, save_at, num_steps)
    return {"whole": digest(whole[0]), "again": digest(again[0]), "state": saved_state}


def with_other_workers(states: list[dict[str, Any]], spec: str) -> dict[str, Any] | None:
    """States of three workers, loaded by two."""
    if dist.get_rank() > 1:
        return None
    model = DistributedDataParallel(net(), process_group=PAIR)
    state = register(model, spec, fallback=False)
    refused = ""
    try:
        state.load_state_dict(states[0])
    except gw.StateError as error:
        refused = str(error)
    state.load_state_dict(states)
    return {"residual": state.state_dict()["residual"], "step": state.step, "refused": refused}


def two_models() -> list[str]:
    """Two models, each with a compressor of its own, in turn."""
    modules = [net(), nn.Linear(5, 2)]
    torch.manual_seed(1)
    models = [DistributedDataParallel(m) for m in modules]
    for model, spec in zip(models, ("ef(topk(0.05))", "ef(powersgd(1))"), strict=True):
        register(model, spec, fallback=False)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in models]
    for step in range(3):
        inputs = [batch(step), batch(step).reshape(-1)[:20].reshape(4, 5)]
        for model, optimizer, x in zip(models, optimizers, inputs, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    return [digest(m) for m in modules]


def local(
    spec: str, num_steps: int, outer: str | None, sync_every: int = 3, bad: bool = False, wide: bool = False
) -> dict[str, Any]:
    """Local steps, and exchanges of pseudo-gradients; of more parameters and no running statistics where asked."""
    torch.manual_seed(dist.get_rank())  # other models at the beginning
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    if wide:
        module = nn.Sequential(nn.Linear(6, 200), nn.Linear(200, 2))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0005 if wide else 0.05)
    settings = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
    outer_optimizer = torch.optim.SGD(module.parameters(), **settings) if outer else None
    engine = LocalSGD(module, optimizer, spec, sync_every, outer_optimizer=outer_optimizer, fallback=False)
    vectors, hashes, errors = [], [], []
    pseudo = []
    share = engine._worker.mean

    def watched(pieces):
        pseudo.append(np.concatenate(pieces))
        return share(pieces)

    engine._worker.mean = watched
    with engine:
        vectors.append(engine._before.numpy().copy())
        for step in range(num_steps):
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
            inputs = torch.randn(8, 6, generator=generator)
            if bad and step == 2 and dist.get_rank() == 1:
                inputs = inputs * torch.nan
            module(inputs).square().sum().backward()
            syncs = engine.num_syncs
            try:
                optimizer.step()
            except gw.GradwireError as error:
                errors.append(f"{type(error).__name__}: {error}")
                break
            if engine.num_syncs > syncs:
                vectors.append(engine._flat().numpy().copy())
                hashes.append(digest(module))
    return {"vectors": vectors, "pseudo": pseudo, "hashes": hashes, "errors": errors, "syncs": engine.num_syncs}


def refused_states(states: list[dict[str, Any]]) -> list[str]:
    """What is said of states that do not belong here; what was there stays."""
    model = DistributedDataParallel(net())
    state = register(model, "ef(topk(0.05))", fallback=False)
    said = []
    other_step = [*states[:2], {**states[2], "step": 7}]
    for wrong in ({**states[dist.get_rank()], "spec": "dense()"}, states[::-1], other_step, [5]):
        try:
            state.load_state_dict(wrong)
        except gw.StateError as error:
            said.append(str(error))
    assert state.step == 0
    assert not state.state_dict()["residual"].any()
    state.load_state_dict(states)
    np.testing.assert_array_equal(state.state_dict()["residual"], states[dist.get_rank()]["residual"])
    return said


def mixed(num_steps: int) -> dict[str, Any]:
    """autocast and a real GradScaler; an Inf at one rank makes all of them skip a step."""
    module = net()
    model = DistributedDataParallel(module)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    register(model, "ef(topk(0.05) | fractional(8))", fallback=False, grad_scaler=scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    hashes, scales = [], []
    for step in range(num_steps):
        optimizer.zero_grad()
        inputs = batch(step) * (torch.inf if step == 2 and dist.get_rank() == 1 else 1)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(inputs).float().square().sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        hashes.append(digest(module))
        scales.append(scaler.get_scale())
    return {"hashes": hashes, "scales": scales, "finite": all(bool(p.isfinite().all()) for p in module.parameters())}


def compiled(optimize: Any) -> list[str]:
    """torch.compile round a DDP model."""
    torch._dynamo.config.optimize_ddp = optimize
    module = net()
    model = DistributedDataParallel(module)
    state = register(model, "ef(topk(0.05))", fallback=False)
    faster = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    hashes = []
    with warnings.catch_warnings(action="ignore"):
        for step in range(3):
            optimizer.zero_grad()
            faster(batch(step)).square().sum().backward()
            optimizer.step()
            hashes.append(digest(module))
    assert state.step == 3
    return hashes


def broken_scaler(spec: str) -> dict[str, Any]:
    """A loss scaler that fails at one rank in one step, before the last bucket is there."""
    module = net()
    model = DistributedDataParallel(module, bucket_cap_mb=0.004)

    class Scaler:
        step = 0

        def get_scale(self):
            if self.step == 1 and dist.get_rank() == 2:
                raise KeyError("scale")
            return 1.0

    scaler = Scaler()
    register(model, spec, fallback=False, grad_scaler=scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    errors, hashes = [], []
    for step in range(4):
        scaler.step = step
        optimizer.zero_grad()
        try:
            model(batch(step)).square().sum().backward()
        except gw.GradwireError as error:
            errors.append(str(error))
            continue
        optimizer.step()
        hashes.append(digest(module))
    return {"errors": errors, "hashes": hashes}


def held() -> tuple[int, int]:
    """Threads and sockets of this process."""
    gc.collect()
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    sockets = [os.readlink(link) for link in links if os.path.lexists(link)]
    return len(os.listdir("/proc/self/task")), sum(name.startswith("socket:") for name in sockets)


def given_back(num_workers: int) -> dict[str, Any] | None:
    """Exchanges that are made and closed again and again over the same workers, and what is held in between."""
    group = PAIR if num_workers == 2 else None
    if dist.get_rank() >= num_workers:
        return None
    within, between, hashes, said = [], [], [], []
    for _ in range(3):
        module = net()
        model = DistributedDataParallel(module, process_group=group)
        with register(model, "ef(topk(0.05))", fallback=False) as state:
            model(batch(0)).square().sum().backward()
            within.append(held())
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        optimizer.step()
        hashes.append(digest(module))
        state.close()
        assert state.step == state.state_dict()["step"] == 1
        for _ in range(2):
            try:
                model(batch(1)).square().sum().backward()
            except gw.StateError as error:
                said.append(str(error))
        local = LocalSGD(module, optimizer, "ef(topk(0.05))", 1, process_group=group, fallback=False)
        with local:
            optimizer.step()
        local.close()
        try:
            local.sync()
        except gw.StateError as error:
            said.append(str(error))
        between.append(held())
    return {"within": within, "between": between, "hashes": hashes, "said": said}
