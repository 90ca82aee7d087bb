"""Whose update a file is: random stages draw as a client does, and never the same for two files."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gradwire as gw
from gradwire.files import aggregate_files, compress_file, decompress_file
from gradwire.files.gwfile import GwReader

RANDOM = ["qsgd(1)", "ternary()", "uniform(3, stochastic=True)", "randk(0.1)", "randk(0.1, unbiased=True) | qsgd(2)"]
X = np.random.default_rng(0).standard_normal(1000).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    save_file({"w": X}, tmp_path / "one.st")
    save_file({"a": X[:400], "b": X[400:800], "c": X[:400].reshape(20, 20)}, tmp_path / "many.st")
    return tmp_path


def vectors(folder, source, spec, **named):
    """What a file of this identity stands for: name -> vector."""
    compress_file(folder / source, folder / "out.gw", gw.parse(spec), **named)
    decompress_file(folder / "out.gw", folder / "back.st")
    return {name: array.reshape(-1) for name, array in load_file(folder / "back.st").items()}


def of_client(spec, x, client=0, round=0, seed=0):
    return gw.decompress(
        gw.decode(gw.Client(gw.parse(spec), gw.Layout.flat(x.size), client, seed).compress(x, round=round))
    )


@pytest.mark.parametrize("spec", RANDOM)
@pytest.mark.parametrize("identity", [(0, 0, 0), (3, 0, 0), (3, 9, 0), (3, 9, 2**64 - 1), (2**63 - 1, 2**40, 5)])
def test_a_tensor_draws_as_a_client_does(folder, spec, identity):
    named = dict(zip(("client", "round", "seed"), identity, strict=True))
    assert np.array_equal(vectors(folder, "one.st", spec, **named)["w"], of_client(spec, X, **named))


@pytest.mark.parametrize("spec", RANDOM)
def test_tensors_draw_as_clients_of_seeds_made_of_their_names(folder, spec):
    found = vectors(folder, "many.st", spec, client=3, round=9, seed=4)
    for name, part in {"a": X[:400], "b": X[400:800], "c": X[:400]}.items():
        seed = int(gw.Key(4, purpose=f"tensor {name}").words(1)[0])
        assert np.array_equal(found[name], of_client(spec, part, 3, 9, seed))
    assert not np.array_equal(found["a"], found["c"]), "equal tensors draw apart"


@pytest.mark.parametrize("spec", RANDOM)
def test_who_is_named_draws_the_same_again_and_all_others_do_not(folder, spec):
    first = vectors(folder, "one.st", spec, client=1, round=2, seed=3)["w"]
    for named in (
        {"client": 2, "round": 2, "seed": 3},
        {"client": 1, "round": 3, "seed": 3},
        {"client": 1, "round": 2},
        {},
    ):
        assert not np.array_equal(vectors(folder, "one.st", spec, **named)["w"], first)
    assert np.array_equal(vectors(folder, "one.st", spec, client=1, round=2, seed=3)["w"], first)
    assert not np.array_equal(vectors(folder, "one.st", spec)["w"], vectors(folder, "one.st", spec)["w"])


def test_shared_supports_are_those_of_all_clients_named_or_not(folder):
    supports = [
        np.flatnonzero(vectors(folder, "many.st", "randk(0.1, shared=True)", round=6, **named)["b"])
        for named in ({}, {}, {"client": 5})
    ]
    assert np.array_equal(supports[0], supports[1])
    assert np.array_equal(supports[0], supports[2])


@pytest.mark.parametrize("spec", ["qsgd(1)", "ternary()", "uniform(3, stochastic=True)", "randk(0.1, unbiased=True)"])
@pytest.mark.parametrize("named", [False, True])
def test_the_error_of_a_mean_falls_with_the_root_of_the_number_of_files(folder, spec, named):
    files = [folder / f"{i}.gw" for i in range(20)]
    for i, file in enumerate(files):
        compress_file(folder / "one.st", file, gw.parse(spec), **({"client": i} if named else {}))
    aggregate_files(files[:1], folder / "one-mean.st")
    aggregate_files(files, folder / "mean.st")
    one, mean = (np.linalg.norm(load_file(folder / f"{n}.st")["w"] - X) for n in ("one-mean", "mean"))
    assert one / 20**0.5 * 0.7 < mean < one / 20**0.5 * 1.4


@pytest.mark.parametrize("named", [{}, {"client": 4, "seed": 8}])
def test_a_residual_remembers_the_next_round_and_whose_it_is(folder, named):
    residual, ever = folder / "residual.st", np.zeros(1000, bool)
    for number in range(60):
        ever |= (
            vectors(folder, "one.st", "ef(randk(0.1))", residual=residual, **(named if number == 0 else {}))["w"] != 0
        )
    assert ever.sum() > 950, "60 rounds of a tenth leave 0.9 ** 60 of the coordinates"
    with safe_open(residual, "np") as file:
        found = file.metadata()
    client = {"gradwire.client": "4"} if named else {}
    assert found == {**client, "gradwire.round": "60", "gradwire.seed": str(named.get("seed", 0))}
    with GwReader(folder / "out.gw") as reader:
        assert [gw.decode(blob).round for _, blob in reader.blobs()] == [59]


def test_rounds_with_a_residual_are_those_of_a_client(folder):
    client = gw.Client(gw.parse("ef(randk(0.3))"), gw.Layout.flat(1000), 7, 9)
    server = gw.Server(gw.parse("ef(randk(0.3))"), gw.Layout.flat(1000))
    for _ in range(5):
        sent = gw.decompress(gw.decode(client.compress(X)))
        client.end_round(server.close_round().blob)
        named = {"client": 7, "seed": 9}
        assert np.array_equal(vectors(folder, "one.st", "ef(randk(0.3))", residual=folder / "r.st", **named)["w"], sent)
    assert np.array_equal(load_file(folder / "r.st")["w"], client.state_dict()["residual"])


def test_a_round_can_be_said_and_repeated(folder):
    residual = folder / "r.st"
    named = {"client": 1, "seed": 2}
    vectors(folder, "one.st", "ef(randk(0.3))", residual=residual, **named, round=40)
    kept = residual.read_bytes()
    first = vectors(folder, "one.st", "ef(randk(0.3))", residual=residual)["w"]
    residual.write_bytes(kept)  # as if it had not been put in its place: the same call makes the same file
    assert np.array_equal(vectors(folder, "one.st", "ef(randk(0.3))", residual=residual, round=41)["w"], first)


def test_the_residual_of_another_client_is_refused(folder):
    residual = folder / "r.st"
    vectors(folder, "one.st", "ef(topk(0.1))", residual=residual, client=3)
    before = residual.read_bytes()
    with pytest.raises(gw.ConfigError, match=r"r.st: is the residual of client 3, got client 4"):
        vectors(folder, "one.st", "ef(topk(0.1))", residual=residual, client=4)
    assert residual.read_bytes() == before
    vectors(folder, "one.st", "ef(topk(0.1))", residual=residual)


def test_a_residual_made_elsewhere_begins_at_round_0(folder):
    save_file({"w": np.zeros(1000, np.float32)}, folder / "r.st", {"format": "pt"})
    vectors(folder, "one.st", "ef(topk(0.1))", residual=folder / "r.st")
    with safe_open(folder / "r.st", "np") as file:
        assert file.metadata() == {"gradwire.round": "1", "gradwire.seed": "0"}


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"client": -1}, "client must be an integer"),
        ({"client": True}, "client must be an integer"),
        ({"client": 2**63 + 1}, "client must be an integer"),
        ({"round": -1}, "round must be an integer"),
        ({"round": 1.0}, "round must be an integer"),
        ({"seed": 2**64}, "seed must be an integer"),
        ({"seed": "7"}, "seed must be an integer"),
    ],
)
def test_numbers_out_of_range_are_refused(folder, named, said):
    with pytest.raises(gw.ConfigError, match=said):
        compress_file(folder / "one.st", folder / "out.gw", gw.topk(0.1), **named)
    assert not (folder / "out.gw").exists()


@pytest.mark.parametrize("text", ["-1", "1.0", "", "x", "9" * 5000, "٣"])
def test_a_residual_that_remembers_nonsense_is_refused(folder, text):
    save_file({"w": X}, folder / "r.st", {"gradwire.round": text})
    with pytest.raises(gw.ConfigError, match=r"r.st: its gradwire.round must be a number"):
        compress_file(folder / "one.st", folder / "out.gw", gw.ef(gw.topk(0.1)), folder / "r.st")
