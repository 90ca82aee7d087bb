"""Saved state: what torch.save and pickle make of it, and that it comes back as it was."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradwire as gw
from gradwire.aggregation.aggregator import Mirrors
from gradwire.aggregation.over_the_air import over_the_air
from gradwire.aggregation.robust import Median, TrimmedMean
from gradwire.federated.algorithms.algorithm import parse_algorithm
from gradwire.federated.algorithms.controls import Controls
from gradwire.saved import StateArray, from_saved, to_saved
from gradwire.wire import read

LAYOUT = gw.Layout.from_arrays({"w": np.zeros((6, 5)), "b": np.zeros(8), "running_mean": np.zeros(2)})
D = LAYOUT.d


def vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(D).astype(np.float32)


def client_of(spec: str) -> Any:
    return gw.Client(gw.parse(spec), LAYOUT, client_id=2, seed=2**63 + 5)


def run_client(spec: str) -> gw.Client:
    """A client in the middle of things: a round ended, one payload cut into packets, one more pending."""
    client, server = client_of(spec), gw.Server(gw.parse(spec), LAYOUT, seed=2**63 + 5, num_clients=3)
    server.receive(client.compress(vector(0)), 2)
    client.end_round(server.close_round().blob)
    client.compress(vector(1))
    client.compress(vector(2))
    return client


def server_of(spec: str, **options: Any) -> gw.Server:
    return gw.Server(gw.parse(spec), LAYOUT, seed=9, downlink=gw.ef(gw.topk(0.3)), max_staleness=1, **options)


def run_server(spec: str, **options: Any) -> gw.Server:
    server = server_of(spec, **options)
    client = gw.Client(gw.parse(spec), LAYOUT, 0, 9)
    server.receive(client.compress(vector(0)))
    client.end_round(server.close_round().blob)
    server.receive(client.compress(vector(1)))
    if not options:
        late = gw.Client(gw.parse(spec), LAYOUT, 1, 9)
        server.receive(late.packets(vector(3), 100, round=1)[0], 1)
    return server


def region_of() -> gw.Region:
    return gw.Region(gw.ef(gw.topk(0.2)), LAYOUT, region_id=1, seed=4)


def run_region() -> gw.Region:
    region, client = region_of(), gw.Client(gw.ef(gw.topk(0.2)), LAYOUT, 0, 4)
    region.receive(client.compress(vector(0), 2.0), 0, 2.0)
    region.forward()
    return region


def filled(aggregator: Any, spec: str = "dense()") -> Any:
    for seed in range(3):
        aggregator.add(gw.decode(gw.Client(gw.parse(spec), LAYOUT).compress(vector(seed))), 2.0)
    return aggregator


def step_of(algorithm: str) -> Any:
    return parse_algorithm(algorithm).make_step(LAYOUT)


def stepped(step: Any) -> Any:
    if hasattr(step, "count"):
        step.count(0.5)
    else:
        step(vector(0))
    return step


def controls() -> Controls:
    return Controls(gw.ef(gw.topk(0.3)), gw.dense(), LAYOUT, 3, 4, 10)


def run_controls() -> Controls:
    made = controls()
    made.receive(read(made.make_client(1).compress(vector(0))), 1)
    made.close_round()
    return made


AIR = over_the_air(10.0)
# what has a state: how to make it in the middle of things, and anew
HOLDERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    **{
        f"client {spec}": (lambda spec=spec: run_client(spec), lambda spec=spec: client_of(spec))
        for spec in ("ef(topk(0.2) | uniform(4))", "ef21(topk(0.2))", "momentum_correction(topk(0.2))", "dense()",
                     "momentum(ef(topk(0.2)), 0.8)",
                     "ef(tcs(0.2, 0.1))", "ef(powersgd(1))", "regtopk(0.2)", "ef(adaptopk(0.2, rounds=9))")
    },
    "server": (lambda: run_server("ef(topk(0.2))"), lambda: server_of("ef(topk(0.2))")),
    "server of mirrors": (lambda: run_server("ef21(topk(0.2))", num_clients=2),
                          lambda: server_of("ef21(topk(0.2))", num_clients=2)),
    "server with a median": (lambda: run_server("randk(0.5, shared=True)", aggregator=Median),
                             lambda: server_of("randk(0.5, shared=True)", aggregator=Median)),
    "server that clips": (lambda: run_server("topk(0.2)", max_norm=0.1), lambda: server_of("topk(0.2)", max_norm=0.1)),
    "region": (run_region, region_of),
    "aggregator": (lambda: filled(gw.Aggregator(LAYOUT)), lambda: gw.Aggregator(LAYOUT)),
    "mirrors": (lambda: filled(Mirrors(LAYOUT, 3)), lambda: Mirrors(LAYOUT, 3)),
    "trimmed mean": (lambda: filled(TrimmedMean(LAYOUT, 0.1, True)), lambda: TrimmedMean(LAYOUT, 0.1, True)),
    "over the air": (lambda: filled(AIR.make(LAYOUT, 1, gw.dense())), lambda: AIR.make(LAYOUT, 1, gw.dense())),
    "momentum step": (lambda: stepped(step_of("fedavgm()")), lambda: step_of("fedavgm()")),
    "adaptive step": (lambda: stepped(step_of("fedadam()")), lambda: step_of("fedadam()")),
    "buffered step": (lambda: stepped(step_of("fedbuff()")), lambda: step_of("fedbuff()")),
    "controls": (run_controls, controls),
}  # fmt: skip


def through_torch(state: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, **options)


def same(a: Any, b: Any) -> bool:
    """Equal in value and kind, a tensor counting as an array."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (np.ndarray, torch.Tensor)):
        a, b = np.asarray(a), np.asarray(b)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


def kinds(value: Any) -> set[type]:
    if isinstance(value, dict):
        return set().union(*map(kinds, value.values()))
    if isinstance(value, list):
        return set().union(*map(kinds, value))
    return {type(value)}


ROUTES: dict[str, Callable[[Any], Any]] = {
    "torch": through_torch,
    "deepcopy, torch": lambda state: through_torch(copy.deepcopy(state)),
    "copies, torch": lambda state: through_torch({**copy.copy(state)} | {}),
    "inside a checkpoint": lambda state: through_torch({"epoch": 1, "ends": [state]})["ends"][0],
    "torch, the older format": lambda state: through_old_torch(state),
    "torch twice": lambda state: through_torch(through_torch(state)),
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "deepcopy": copy.deepcopy,
}


def through_old_torch(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", HOLDERS)
def test_a_state_comes_back(name, route):
    make, anew = HOLDERS[name]
    state = make().state_dict()
    frozen = copy.deepcopy(state)
    loaded = ROUTES[route](state)
    assert same(loaded, frozen)
    restored = anew()
    restored.load_state_dict(loaded)
    again = restored.state_dict()
    assert same(again, frozen)
    assert kinds(again) <= {StateArray, int, float, bool, str, type(None)}
    assert same(state, frozen)
    assert same(loaded, frozen), "loading changes nothing of what is loaded"


@pytest.mark.parametrize("name", [name for name in HOLDERS if name.startswith("client")])
def test_a_client_goes_on_with_the_same_bytes(name):
    make, anew = HOLDERS[name]
    client, restored = make(), anew()
    restored.load_state_dict(through_torch(client.state_dict()))
    assert restored.pending == client.pending
    for seed in (5, 6):
        assert restored.compress(vector(seed)) == client.compress(vector(seed))
    memory = restored._standing.state.memory.values()
    assert all(type(value) is np.ndarray for value in memory if isinstance(value, np.ndarray))


def test_what_is_loaded_shares_no_memory():
    client = run_client("ef(topk(0.2))")
    loaded = through_torch(client.state_dict())
    restored = client_of("ef(topk(0.2))")
    restored.load_state_dict(loaded)
    before = restored.state_dict()
    loaded["residual"].fill_(7)
    loaded["pending"][0]["blobs"][0].fill_(7)
    assert same(restored.state_dict(), before)


def test_the_reader_needs_no_gradwire(tmp_path: Path):
    client = run_client("ef(topk(0.2) | uniform(4))")
    state = client.state_dict()
    torch.save(state, tmp_path / "state.pt")
    code = (
        "import sys, torch\n"
        "state = torch.load(sys.argv[1])\n"
        "assert not [m for m in sys.modules if m.startswith('gradwire')]\n"
        "print(state['residual'].dtype, state['residual'].shape[0], len(state['pending']))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "state.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["torch.float32", str(D), "2"], done.stderr


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_gives_ordinary_arrays_and_names_no_class_of_ours(protocol):
    state = run_client("ef(topk(0.2))").state_dict()
    data = pickle.dumps(state, protocol)
    assert b"gradwire" not in data
    residual = pickle.loads(data)["residual"]
    assert type(residual) is (torch.Tensor if protocol == 2 else np.ndarray), "protocol 2 is torch.save's"
    assert np.array_equal(np.asarray(residual), state["residual"])


def test_without_torch_there_are_only_arrays():
    code = (
        "import pickle, sys\nimport numpy as np, gradwire as gw\n"
        "client = gw.Client(gw.ef(gw.topk(0.5)), gw.Layout.flat(4))\nclient.compress(np.ones(4, np.float32))\n"
        "residual = pickle.loads(pickle.dumps(client.state_dict(), 2))['residual']\n"
        "assert 'torch' not in sys.modules\nprint(type(residual).__name__, residual.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "ndarray [0.0, 0.0, 1.0, 1.0]\n", done.stderr


# --- arrays of a state are arrays -----------------------------------------------------------------


def residual() -> np.ndarray:
    return run_client("ef(topk(0.2))").state_dict()["residual"]


def test_numpy_calculates_with_them_as_with_its_own():
    array = residual()
    plain = np.array(array)
    assert isinstance(array, np.ndarray)
    assert (array.shape, array.dtype) == ((D,), np.float32)
    for f in (np.abs, np.sum, np.isfinite, lambda a: a + vector(9), lambda a: vector(9) - a, lambda a: a @ a,
              np.linalg.norm, lambda a: a.max(), lambda a: a[3], lambda a: np.concatenate([a, a]), np.cumsum,
              lambda a: a == a, lambda a: np.array([a.mean()])):  # fmt: skip
        got, expected = f(array), f(plain)
        assert type(got) is type(expected)
        assert np.array_equal(got, expected)


def test_changes_in_place_keep_it_one_that_torch_can_save():
    state = run_client("ef(topk(0.2))").state_dict()
    expected = np.array(state["residual"]) * 2 - 1
    state["residual"] *= 2
    state["residual"] -= 1
    assert through_torch(state)["residual"].tolist() == expected.tolist()


@pytest.mark.parametrize("view", [lambda a: a[::-2], lambda a: a[3:3], lambda a: a.reshape(8, 5).T, lambda a: a[:1]])
def test_views_are_saved_alone(view):
    array = view(residual())
    file = io.BytesIO()
    torch.save({"a": array}, file)
    file.seek(0)
    assert np.array_equal(torch.load(file)["a"].numpy(), array)
    frozen = residual()
    frozen.flags.writeable = False
    assert np.array_equal(through_torch(frozen).numpy(), frozen)


def test_compiled_kernels_take_them():
    array, payload = residual(), gw.decode(gw.Client(gw.topk(0.5), LAYOUT).compress(vector(4)))
    expected = array + gw.decompress(payload)
    gw.accumulate(array, payload)
    assert np.array_equal(array, expected)
    assert gw.Client(gw.ef(gw.topk(0.5)), LAYOUT).compress(array) == gw.Client(gw.ef(gw.topk(0.5)), LAYOUT).compress(
        expected
    )


def test_plain_values_are_made_of_numpy_numbers():
    saved = to_saved({"a": np.float64(1.5), "b": (np.int64(3), np.bool_(True)), "c": {"d": np.ones(2, np.uint8)}})
    assert kinds(saved) == {float, int, bool, StateArray}
    assert through_torch(saved)["b"] == [3, True]
    back = from_saved(saved)
    assert type(back["c"]["d"]) is np.ndarray


# --- what cannot be believed ----------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [torch.zeros(D, dtype=torch.bfloat16), torch.zeros(D).to_sparse(),
                                    torch.zeros(D, device="meta"), torch.zeros(D - 1)])  # fmt: skip
def test_tensors_that_no_residual_is_made_of(tensor):
    client = run_client("ef(topk(0.2))")
    before = client.state_dict()
    with pytest.raises(gw.StateError):
        client.load_state_dict(client.state_dict() | {"residual": tensor})
    assert same(client.state_dict(), before)


def test_states_of_another_layout_say_how_to_compare():
    other = gw.Layout.from_arrays({"module.w": np.zeros((6, 5)), "module.b": np.zeros(8), "running_mean": np.zeros(2)})
    said = "state is of another layout: other names, shapes, order or running statistics.*client.layout.difference"
    holders = [gw.Client(gw.ef(gw.topk(0.2)), other), gw.Server(gw.ef(gw.topk(0.2)), other),
               gw.Region(gw.ef(gw.topk(0.2)), other), parse_algorithm("fedavgm()").make_step(other)]  # fmt: skip
    ours = [gw.Client(gw.ef(gw.topk(0.2)), LAYOUT), gw.Server(gw.ef(gw.topk(0.2)), LAYOUT),
            gw.Region(gw.ef(gw.topk(0.2)), LAYOUT), step_of("fedavgm()")]  # fmt: skip
    for holder, own in zip(holders, ours, strict=True):
        with pytest.raises(gw.StateError, match=said):
            holder.load_state_dict(own.state_dict())
