"""Errors name the tensor: NaN and Inf at every end, and models that differ between two of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gradwire as gw
from gradwire.aggregation.robust import Median, TrimmedMean
from gradwire.compressors.feedback import ef21, momentum_correction
from gradwire.compressors.lowrank import powersgd
from gradwire.federated.algorithms.algorithm import parse_algorithm

LAYOUT = gw.Layout.from_arrays({"enc.weight": np.ones((10, 10)), "attn.mask": np.ones(3), "bn.running_var": np.ones(2)})
PLACES = [(37, r"index 37, in tensor 'enc.weight' at \[3, 7\]"), (101, r"index 101, in tensor 'attn.mask' at \[1\]"),
          (104, r"index 104, in tensor 'bn.running_var' at \[1\]")]  # fmt: skip
SPECS = ["topk(0.1)", "dense()", "ef(topk(0.1))", "ef(topk(0.1) | fractional(16))", "ef(sign())", "ef21(topk(0.1))",
         "momentum_correction(topk(0.1))", "momentum(topk(0.1), 0.8)", "powersgd(1)", "ef(powersgd(1))",
         "by_tensor(topk(0.1))",
         "warmup(ef(topk(0.1)), 2)", "ef(tcs(0.1, 0.1))", "randk(0.5, unbiased=True)"]  # fmt: skip


@pytest.mark.parametrize(("index", "said"), PLACES)
@pytest.mark.parametrize("spec", SPECS)
def test_client_names_the_tensor(spec, index, said):
    update = np.zeros(LAYOUT.d, np.float32)
    update[index] = -np.inf
    client = gw.Client(gw.parse(spec), LAYOUT)
    for given in (update, torch.from_numpy(update)):
        with pytest.raises(gw.UpdateError, match=f"must be finite, got -inf at {said}"):
            client.compress(given)
    with pytest.raises(gw.UpdateError, match=said):
        client.packets(update, mtu=100)
    assert (client.sequence, client.pending) == (0, ())


@pytest.mark.parametrize(
    ("compressor", "memory", "held"),
    [(gw.ef(gw.topk(0.1)), "residual", 3e38), (ef21(gw.topk(0.1)), "mirror", -3e38),
     (momentum_correction(gw.topk(0.1)), "residual", 3e38)],
)  # fmt: skip
def test_what_adds_up_too_far_is_named(compressor, memory, held):
    client = gw.Client(compressor, LAYOUT)
    state = client.state_dict()
    (state if memory in state else state["scheme"])[memory] = np.float32(held) * (np.arange(LAYOUT.d) == 101)
    client.load_state_dict(state)
    with pytest.raises(gw.UpdateError, match=f"must be finite, got inf at {PLACES[1][1]}"):
        client.compress(np.full(LAYOUT.d, 2e38, np.float32))


def test_server_names_the_tensor_of_a_step():
    def step(update):
        update[102] = np.nan
        return update

    server = gw.Server(gw.dense(), LAYOUT, step=step)
    with pytest.raises(
        gw.UpdateError, match=r"what step gives must be finite, got nan at index 102, in tensor 'attn.mask'"
    ):
        server.close_round()
    assert server.round == 0


def test_steps_name_the_tensor():
    step = parse_algorithm("fedadam()").make_step(LAYOUT)
    update = np.zeros(LAYOUT.d, np.float32)
    update[37] = np.nan
    with pytest.raises(gw.UpdateError, match=PLACES[0][1]):
        step(update)
    update[37] = 3e38
    with pytest.raises(gw.UpdateError, match=r"fedadam's squares must be finite, got inf at " + PLACES[0][1]):
        step(update)


def test_workers_name_the_tensor():
    update = np.full(LAYOUT.d, 3e38, np.float32)
    compressor = gw.ef(powersgd(1))
    state = compressor.init(LAYOUT)
    state.memory["residual"][101] = 3e38
    with pytest.raises(gw.UpdateError, match=PLACES[1][1]):
        next(compressor.phases(update, state))


# --- models that differ ---------------------------------------------------------------------------


def plain_and_wrapped():
    return (gw.Layout.from_arrays({f"{prefix}conv.weight": np.zeros(10)}) for prefix in ("", "module."))


def test_ends_of_different_models_say_how_to_compare():
    plain, wrapped = plain_and_wrapped()
    said = (
        r"^blob is of another layout: the same d = 10, but other names, shapes, order or running statistics of its "
        rf"tensors \({wrapped.digest.hex()}, expected {plain.digest.hex()}\); client.layout.difference\(server.layout\)"
    )
    client = gw.Client(gw.topk(0.5), wrapped)
    blob = client.compress(np.ones(10, np.float32))
    for end in (gw.Server(gw.topk(0.5), plain), gw.Region(gw.topk(0.5), plain)):
        with pytest.raises(gw.ProtocolError, match=said):
            end.receive(blob)
        assert end.aggregator.num_received == 0
    down = gw.Server(gw.topk(0.5), wrapped).close_round().blob
    with pytest.raises(gw.ProtocolError, match=said):
        gw.Client(gw.topk(0.5), plain).end_round(down)
    assert wrapped.difference(plain) == (
        "names begin with 'module.' here and not there: the first is 'module.conv.weight' here and 'conv.weight' there"
    )


def test_ends_of_different_sizes_say_so():
    small, large = gw.Layout.flat(3), gw.Layout.flat(4)
    with pytest.raises(gw.ProtocolError, match="blob is of another layout: d = 3, expected d = 4"):
        gw.Server(gw.dense(), large).receive(gw.Client(gw.dense(), small).compress(np.ones(3, np.float32)))
    with pytest.raises(gw.ProtocolError, match="blob is of another layout: d = 3, expected d = 4"):
        gw.Client(gw.dense(), large).end_round(gw.Server(gw.dense(), small).close_round().blob)


@pytest.mark.parametrize("kind", [gw.Aggregator, Median, lambda layout: TrimmedMean(layout, 0.1)])
def test_merging_names_the_tensor(kind):
    plain, wrapped = plain_and_wrapped()
    with pytest.raises(gw.ConfigError, match=r"the same layout: names begin with 'module.' there and not here"):
        kind(plain).merge(kind(wrapped))
