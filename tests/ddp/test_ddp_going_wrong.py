"""What goes wrong at one worker is the same error at all of them, and training goes on; what cannot work is refused."""

import ddp_cases
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradwire as gw
from gradwire.ddp import CommState, LocalSGD, hook, register
from gradwire.ddp.installed import check_torch

SPECS = [
    "ef(topk(0.05) | fractional(8))",
    "ef(tcs(0.05, 0.02))",
    "ef(cyclic(0.1))",
    "ef(powersgd(2))",
    "ef(warmup(powersgd(1), 2))",
    "uniform(8)",
]


def conserved(workers):
    raw = np.sum([w["own"] for w in workers], axis=(0, 1), dtype=np.float64)
    left = np.sum([w["residual"] for w in workers], axis=0, dtype=np.float64)
    sent = len(workers) * np.sum(workers[0]["given"], axis=0, dtype=np.float64)
    np.testing.assert_allclose(sent + left, raw, rtol=0, atol=1e-5 * np.abs(raw).max())


@pytest.mark.parametrize("spec", SPECS)
def test_a_gradient_that_is_not_finite(ranks, spec):
    workers = ranks.run(ddp_cases.bad_then_good, spec, 1)
    for worker in workers:
        assert worker["errors"] == workers[0]["errors"]
        assert worker["hashes"] == workers[0]["hashes"]
        assert worker["step"] == 5
    assert [error.startswith("UpdateError: worker 1 of 3, step ") for error in workers[0]["errors"]] == [True, True]
    assert "nan" in workers[0]["errors"][0]
    if spec.startswith("ef"):
        conserved(workers)


@pytest.mark.parametrize("spec", ["ef(topk(0.05))", "ef(cyclic(0.1))"])
def test_what_goes_wrong_before_the_last_bucket_is_told_to_all(ranks, spec):
    workers = ranks.run(ddp_cases.broken_scaler, spec)
    for worker in workers:
        assert worker["errors"] == ["worker 2 of 3, step 1: KeyError: 'scale'"]
        assert worker["hashes"] == workers[0]["hashes"]
    assert len(set(workers[0]["hashes"])) == 3


def test_not_finite_gradients_may_propagate(ranks):
    workers = ranks.run(ddp_cases.bad_then_good, SPECS[0], 2, "propagate")
    assert [w["errors"] for w in workers] == [["NaN", "NaN"]] * 3
    conserved(workers)


@pytest.mark.parametrize("spec", ["ef(topk(0.05))", "uniform(8)"])
def test_whole_gradients_where_they_take_less_time(ranks, spec):
    """A link that costs nothing: from the fourth step on gradients are summed, residuals first; all of it conserved."""
    workers = ranks.run(ddp_cases.bad_then_good, spec, 1, "raise", True)
    for worker in workers:
        assert worker["paths"] == ["gather"] * 4 + ["dense"] * 4
        assert worker["hashes"] == workers[0]["hashes"]
        assert worker["errors"] == ["UpdateError: step 6: a gradient is not finite at one of the workers"]
    assert [len(worker["said"]) for worker in workers] == [1, 0, 0]
    assert (
        f"from step 4 on gradients are summed whole, which takes less time on this link than {spec}"
        in workers[0]["said"][0]
    )
    if spec != "uniform(8)":
        assert not any(worker["residual"].any() for worker in workers)
        conserved(workers)


@pytest.mark.parametrize("what", ["spec", "seed", "fallback"])
def test_workers_that_do_not_agree(ranks, what):
    for rank, said in enumerate(ranks.run(ddp_cases.registered_differently, what)):
        assert "all workers must have the same compressor, layout, seed and fallback" in said
        assert f"at worker {rank}" in said
    assert ranks.run(ddp_cases.registered_differently, "nothing") == ["registered"] * 3


@pytest.fixture
def alone():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_models_that_are_refused(alone):
    class FullyShardedDataParallel(nn.Linear):
        pass

    class FSDPModule(nn.Linear):
        pass

    class DDPSequential(nn.Linear):
        pass

    for cls in (FullyShardedDataParallel, FSDPModule, DDPSequential, nn.Linear):
        with pytest.raises(gw.ConfigError, match=f"got {cls.__name__}: .*wrap .*DistributedDataParallel"):
            register(cls(2, 2), "ef(topk(0.5))")
    model = DistributedDataParallel(nn.Linear(2, 2))
    register(model, "ef(topk(0.5))")
    with pytest.raises(gw.ConfigError, match="has the hook hook already, and DDP takes one"):
        register(model, "ef(topk(0.5))")
    other = DistributedDataParallel(nn.Linear(2, 2))
    other.mixed_precision = object()
    with pytest.raises(gw.ConfigError, match=r"use torch\.autocast"):
        register(other, "ef(topk(0.5))")


def test_arguments_that_are_refused(alone):
    model = DistributedDataParallel(nn.Linear(2, 2))
    for options, match in [
        ({"compressor": 5}, "compressor must be a Compressor or its text"),
        ({"compressor": "ef21(topk(0.5))"}, "keeps a mirror of each worker, which nobody holds here: use ef"),
        ({"compressor": "momentum(ef21(topk(0.5)), 0.8)"}, "keeps a mirror of each worker"),
        ({"compressor": "ef(adaptopk_online(0.5))"}, "must know how long the run is, .* give it rounds="),
        ({"on_nonfinite": "ignore"}, "must be 'raise' or 'propagate'"),
        ({"overlap": True}, "overlap must be 'auto'"),
        ({"grad_scaler": 2.0}, r"must be a torch\.amp\.GradScaler"),
        ({"seed": -1}, "seed must be"),
    ]:
        with pytest.raises(gw.ConfigError, match=match):
            register(model, **{"compressor": "ef(topk(0.5))", **options})
    register(model, "ef(topk(0.5))")  # nothing was changed
    with pytest.raises(gw.ConfigError, match="'python_reducer' hands over single gradients"):
        hook(CommState("topk(0.5)"), (torch.ones(2), torch.ones(2)))
    linear = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    for options, match in [
        ({"sync_every": 0}, "sync_every must be"),
        ({"compressor": "ef21(topk(0.5))"}, "keeps a mirror of each worker, which nobody holds here: use ef"),
        ({"outer_optimizer": optimizer}, "must be another optimizer"),
        ({"outer_optimizer": torch.optim.SGD([linear.bias], lr=1)}, "'weight' is not in it"),
    ]:
        with pytest.raises(gw.ConfigError, match=match):
            LocalSGD(linear, optimizer, **{"compressor": "ef(topk(0.5))", "sync_every": 2, **options})


def test_dtensors_are_refused(alone):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    linear = nn.Linear(2, 2)
    mesh = init_device_mesh("cpu", (1,))
    linear.weight = nn.Parameter(distribute_tensor(linear.weight.detach(), mesh))
    with pytest.raises(gw.ConfigError, match="'weight' is a DTensor"):
        CommState("ef(topk(0.5))", linear)


def test_without_a_process_group():
    linear = nn.Linear(2, 2)
    with pytest.raises(gw.ProtocolError, match="init_process_group"):
        LocalSGD(linear, torch.optim.SGD(linear.parameters(), lr=0.1), "ef(topk(0.5))", 2)


def test_a_torch_that_cannot_be_used():
    with pytest.raises(gw.BackendUnavailable, match=r"gradwire\[torch\]"):
        check_torch(False, False)
    with pytest.raises(gw.BackendUnavailable, match=r"without it"):
        check_torch(True, False)
