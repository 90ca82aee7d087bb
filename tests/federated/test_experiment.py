"""Experiments: what is checked, what is filled in, and the TOML file that must give the same experiment back."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwire.errors import ConfigError
from gradwire.federated.experiment import Experiment, read_settings
from gradwire.federated.settings import DEFAULT_METHODS, Settings


def write(folder, text):
    path = folder / "experiment.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def message(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        Experiment.build(*args, **kwargs)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value).lower()
    return str(caught.value)


def test_defaults():
    e = Experiment.build({})
    assert (e.data, e.clients, e.rounds, e.local_steps, e.batch_size) == ("digits", 10, 100, 5, 32)
    assert (e.partition, e.seeds, e.device, e.model, e.data_dir) == ("iid", [0], "cpu", None, None)
    assert tuple(e.methods) == DEFAULT_METHODS
    assert {"dense()", "topk(0.01)", "ef(topk(0.01))"} <= set(DEFAULT_METHODS)
    assert [str(c) for c in e.compressors()] == e.methods
    assert all(e.evaluates(r) for r in range(100))
    assert e.step_size > 0


def test_every_setting_has_a_line_in_the_docstring():
    text = inspect.getdoc(Settings)
    for name in Experiment.model_fields:
        assert f"\n    {name}: " in text


def test_an_experiment_is_frozen():
    e = Experiment.build({})
    with pytest.raises(ValueError, match="frozen"):
        e.rounds = 3


def test_methods_take_their_canonical_text():
    e = Experiment.build({"methods": ["ef( topk(density = 0.010) )", 'topk(0.5, scope="tensor")']})
    assert e.methods == ["ef(topk(0.01))", "topk(0.5, scope='tensor')"]


EXPERIMENTS = [
    {},
    {"data": "mnist", "data_dir": "/data/my files", "model": "cnn", "device": "cuda:1"},
    {"methods": ["topk(0.5, scope='tensor') | uniform(8)", "ef(topk(num_bytes=100))", "randk(0.1, shared=True)"]},
    {"clients": 1, "rounds": 1, "local_steps": 1, "batch_size": 1, "seeds": [0, 2**63 - 1, 7]},
    {"learning_rate": 1e-05, "evaluate_every": 3, "partition": "dirichlet:0.5"},
    {"learning_rate": 1e300},
    {"learning_rate": 1},
    {"data_dir": '/a "quoted" \\ back\\slash\t\n\u0001 é ζ'},
    {"data_dir": "/an emoji 🙂 and beyond \U0010ffff"},
    {"data_dir": "/delete \x7f"},
]


@pytest.mark.parametrize("values", EXPERIMENTS, ids=range(len(EXPERIMENTS)))
def test_toml_gives_the_same_experiment_back(tmp_path, values):
    e = Experiment.build(values)
    assert Experiment.read(write(tmp_path, e.toml())) == e


@given(
    data_dir=st.none() | st.text(st.characters(codec="utf-8", exclude_characters="./")).map("/data/a{}".format),
    learning_rate=st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5, unique=True),
    density=st.floats(min_value=0, max_value=1, exclude_min=True),
)
def test_any_toml_gives_the_same_experiment_back(tmp_path_factory, data_dir, learning_rate, seeds, density):
    e = Experiment.build(
        {"data_dir": data_dir, "learning_rate": learning_rate, "seeds": seeds, "methods": [f"topk({density!r})"]}
    )
    assert Experiment.read(write(tmp_path_factory.mktemp("e"), e.toml())) == e


def test_paths_in_a_file_begin_at_its_folder(tmp_path, monkeypatch):
    text = """
data_dir = "data"
links = ["lte()", "trace('wifi.csv')"]
[[runs]]
regions = 2
region_link = "trace('../wan.csv')"
[[runs]]
links = ["trace('/there/own.csv')", "trace('~/home.csv')"]
"""
    (tmp_path / "settings").mkdir()
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir("/")
    e = Experiment.read(write(tmp_path / "settings", text))
    assert e.data_dir == str(tmp_path / "settings" / "data")
    assert e.links == ["lte()", f"trace('{tmp_path}/settings/wifi.csv')"]
    assert e.runs[0]["region_link"] == f"trace('{tmp_path}/wan.csv')"
    assert e.runs[1]["links"] == ["trace('/there/own.csv')", "trace('/home/me/home.csv')"]
    assert Experiment.read(write(tmp_path, e.toml())) == e  # written out, it means the same anywhere


@pytest.mark.parametrize(
    ("name", "expected"),
    [("roundz", "'rounds'"), ("method", "'methods'"), ("seed", "'seeds'"), ("learning-rate", "'learning_rate'")],
)
def test_an_unknown_setting_gets_the_nearest_name(name, expected):
    said = message({name: 1}, "my.toml")
    assert said.startswith("my.toml: ")
    assert repr(name) in said
    assert f"did you mean {expected}?" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds", "3"),
        ("rounds", 3.0),
        ("rounds", True),
        ("rounds", 0),
        ("rounds", -1),
        ("clients", 0),
        ("clients", 100_001),
        ("local_steps", 0),
        ("batch_size", 0),
        ("batch_size", None),
        ("learning_rate", 0),
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", "0.1"),
        ("methods", "dense()"),
        ("methods", []),
        ("methods", [1]),
        ("seeds", []),
        ("seeds", 0),
        ("seeds", [0.5]),
        ("seeds", [True]),
        ("seeds", [-1]),
        ("seeds", [2**63]),
        ("seeds", [1, 2, 1]),
        ("data", 3),
        ("device", 0),
        ("evaluate_every", 0),
        ("partition", 5),
    ],
)
def test_a_bad_value_names_the_setting_the_source_and_what_was_got(name, value):
    said = message({name: value}, "my.toml")
    assert said.startswith("my.toml: ")
    assert name in said
    got = value[0] if isinstance(value, list) and value and name == "methods" else value
    if name == "seeds" and isinstance(value, list) and value and not isinstance(value[0], int):
        got = value[0]
    assert f"got {got!r}" in said or f"got {value!r}" in said or f"got {value[0]!r}" in said


@pytest.mark.parametrize(
    ("partition", "said"),
    [("iidd", "did you mean 'iid'"), ("dirichlet:0", "> 0"), ("dirichlet", "dirichlet:A"), ("shards:x", "shards:S")],
)
def test_a_bad_partition(partition, said):
    assert said in message({"partition": partition})


@pytest.mark.parametrize("method", ["topkk(0.1)", "topk(2)", "topk(", "", "3", "ef(dense)"])
def test_a_bad_method_points_at_the_character(method):
    assert "character" in message({"methods": ["dense()", method]})


@pytest.mark.parametrize(
    "methods", [["dense()", "dense()"], ["topk(0.01)", "topk(density=0.010)"], ["topk(1)", "dense()", "topk(1.0)"]]
)
def test_a_method_given_twice_is_found_whatever_its_spelling(methods):
    assert "twice" in message({"methods": methods})


def test_a_thousand_methods_are_one_line():
    assert len(message({"methods": ["dense()"] * 10_000})) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "rounds = = 3",
        "rounds = 3\nrounds = 4",
        b"\x80\xfe",
        "a = " + "[" * 100_000,
        "rounds = " + "1" * 10_000,
        "\0",
        "[run",
    ],
    ids=["syntax", "twice", "no-utf8", "too-deep", "huge-number", "nul", "open-table"],
)
def test_no_toml_names_the_file(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        Experiment.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_says_how_a_file_is_read(tmp_path, encoding):
    mark = "\ufeff" if encoding.startswith("utf-16-") else ""
    path = write(tmp_path, (mark + 'name = "Größe"\r\nrounds = 7\r\n').encode(encoding))
    e = Experiment.read(path)
    assert (e.name, e.rounds) == ("Größe", 7)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "a.toml" / "b"):
        with pytest.raises(ConfigError) as caught:
            read_settings(path)
        assert str(path) in str(caught.value)


def test_an_empty_file_is_the_default(tmp_path):
    assert Experiment.read(write(tmp_path, "")) == Experiment.build({})


def test_an_integer_learning_rate_is_a_number(tmp_path):
    assert Experiment.read(write(tmp_path, "learning_rate = 1\n")).step_size == 1.0


def test_the_last_round_is_always_evaluated():
    for rounds in (1, 2, 19, 20, 21, 100):
        for every in (None, 1, 7, 1000):
            e = Experiment.build({"data": "mnist", "rounds": rounds, "evaluate_every": every})
            evaluated = [r for r in range(rounds) if e.evaluates(r)]
            assert evaluated[-1] == rounds - 1
            if every == 1:
                assert len(evaluated) == rounds
            if every == 7:
                assert evaluated[:-1] == list(range(6, rounds - 1, 7))


# ---- sweeps


def labels(values):
    return [variant.label for variant in Experiment.build(values).variants()]


def test_a_method_is_its_own_label():
    assert labels({}) == list(DEFAULT_METHODS)


def test_every_combination_is_run_once():
    values = {
        "methods": ["dense()", "ef(topk(0.01))"],
        "algorithms": ["fedavg()", "fedprox()"],
        "links": ["lte()", "lora()"],
    }
    found = Experiment.build(values).variants()
    told = [(v.experiment.methods[0], v.experiment.algorithms[0], v.experiment.links[0]) for v in found]
    assert told == [(m, a, li) for m in values["methods"] for a in values["algorithms"] for li in ("lte()", "lora()")]
    assert all(len(getattr(v.experiment, name)) == 1 for v in found for name in ("methods", "algorithms", "links"))
    assert labels(values)[1] == "dense() · fedavg() · lora()"


def test_runs_change_settings_and_keep_the_rest():
    values = {
        "clients": 7,
        "methods": ["ef(topk(0.1))"],
        "runs": [
            {"name": "plain"},
            {"rounds": 3, "algorithms": ["fedasync( mixing = 0.5 )"]},
            {"name": "two", "methods": ["dense()", "topk(0.5)"], "clients": 3},
        ],
    }
    found = Experiment.build(values).variants()
    assert [v.label for v in found] == [
        "plain",
        "ef(topk(0.1)) · fedasync(mixing=0.5) · rounds 3",
        "two · dense()",
        "two · topk(0.5)",
    ]
    assert [(v.experiment.clients, v.experiment.rounds) for v in found] == [(7, 100), (7, 3), (3, 100), (3, 100)]
    assert all(not v.experiment.runs for v in found)
    assert str(found[1].compressor) == "ef(topk(0.1))"


def test_sweeps_go_through_toml(tmp_path):
    e = Experiment.build(
        {
            "links": ["mix(fibre=1, lte=2)", "ideal()"],
            "runs": [{"name": 'é "quoted"', "deadline_seconds": 2.5, "budgets": ["fit()"]}, {"rounds": 4}],
        }
    )
    again = Experiment.read(write(tmp_path, e.toml()))
    assert again == e
    assert again.variants() == e.variants()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"algorithms": ["fedavg"]}, "write fedavg(...)"),
        ({"algorithms": ["fedsomething()"]}, "unknown algorithm 'fedsomething'"),
        ({"algorithms": ["fedavg()", "fedavg( )"]}, "algorithm fedavg() is given twice"),
        ({"links": ["fiber()"]}, "did you mean 'fibre'"),
        ({"links": ["lte()", "lte( )"]}, "link lte() is given twice"),
        ({"budgets": ["fit()"]}, "fit() needs deadline_seconds"),
        ({"budgets": ["fit()"], "deadline_seconds": 1.0, "mtu": 100}, "fit() and mtu"),
        ({"packet_loss": 0.1}, "packet_loss is about packets: set mtu"),
        ({"packet_loss": 1.0, "mtu": 100}, "packet_loss"),
        ({"mtu": 100, "algorithms": ["scaffold()"]}, "scaffold() sends control variates whole"),
        ({"mtu": 100, "algorithms": ["fedbuff()"]}, "fedbuff() sends payloads whole"),
        ({"regions": 2, "algorithms": ["fedasync()"]}, "fedasync() has no rounds for regions"),
        ({"regions": 2, "algorithms": ["scaffold()"]}, "no regions"),
        ({"regions": 11}, "regions must be at most clients 10, got 11"),
        ({"examples_per_second": 1.0}, "examples_per_second is for asynchronous algorithms"),
        ({"aggregation": "median()", "methods": ["dense()"], "mtu": 100}, "median() needs whole payloads"),
        ({"aggregation": "median()", "algorithms": ["fedbuff()"]}, "median() needs whole payloads of one round"),
        ({"max_staleness": 3}, "max_staleness is for"),
        ({"deadline_seconds": 3.0, "algorithms": ["fedbuff()"]}, "deadline_seconds means nothing to fedbuff()"),
        ({"stop_at_target": True}, "stop_at_target needs target_accuracy"),
        ({"target_accuracy": 1.5}, "target_accuracy"),
        ({"participation": 0.0}, "participation"),
        ({"aggregation": "mode()"}, "unknown aggregation 'mode'"),
        ({"downlink": "topk(2)"}, "density must be in (0, 1]"),
        ({"runs": [{"name": "a"}, {"name": "a"}]}, "run 'a · "),
        ({"methods": ["dense()"], "runs": [{"name": "a"}, {"name": "a"}]}, "run 'a' is there twice"),
        ({"runs": [{"seeds": [3]}]}, "run 1: seeds is the same for all runs"),
        ({"runs": [{"rounds": 3}, {"round": 3}]}, "run 2: unknown setting 'round'; did you mean 'rounds'"),
        ({"runs": [{"runs": []}]}, "run 1: runs is the same for all runs"),
        ({"runs": [{"packet_loss": 0.5}]}, "run 1: packet_loss is about packets"),
        ({"runs": {"name": "a"}}, "runs"),
    ],
)
def test_settings_that_cannot_be(values, said):
    assert said in message(values)


def test_the_cosine_falls_from_the_warm_up_to_zero():
    e = Experiment.build({"schedule": "cosine", "rounds": 110, "warmup_rounds": 10, "learning_rate": 0.4})
    rates = [e.step_size_at(t) for t in range(110)]
    assert rates[0] == pytest.approx(0.08)
    assert rates[10] == pytest.approx(0.4)
    assert rates[60] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.001


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "experiments").glob("*.toml")), ids=lambda p: p.stem
)
def test_the_files_that_come_with_it_are_read(path):
    found = Experiment.read(path).variants()
    assert len(found) > 1
    text = path.read_text()
    assert f"gradwire run experiments/{path.name}" in text
