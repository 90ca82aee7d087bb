"""The federated system: clocks by hand, mass by hand, algorithms by hand, and runs that go on as if never stopped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gradwire as gw
from gradwire.ends.client import Client
from gradwire.ends.inbox import Inbox
from gradwire.ends.server import Server
from gradwire.errors import ConfigError, StateError
from gradwire.federated.algorithms.controls import Controls
from gradwire.federated.data.tasks import load_task
from gradwire.federated.data.train import draw_batches
from gradwire.federated.experiment import Experiment
from gradwire.federated.rounds import federation as federation_module
from gradwire.federated.rounds.members import MembersOnDisk
from gradwire.federated.simulation import Simulation
from gradwire.rng import Key

BASE = {"rounds": 6, "clients": 5, "local_steps": 3, "batch_size": 8, "partition": "dirichlet:0.5"}
LOSSY = {
    "mtu": 150,
    "packet_loss": 0.3,
    "packet_duplication": 0.2,
    "packet_reordering": 0.2,
    "disconnection": 0.3,
    "deadline_seconds": 1.5,
    "links": ["mix(lte=3, satellite=2)"],
}
HEADER = "client,seconds,uplink_bits_per_second,downlink_bits_per_second,latency_seconds,steps_per_second,available\n"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """One torch thread: where other tests share the cores, two make every tiny step wait for the scheduler."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return load_task("digits")


def simulation(task, method="ef(topk(0.02))", folder=None, seed=0, **settings):
    settings = {**BASE, "methods": [method], **settings}
    experiment = Experiment.build(settings)
    return Simulation(experiment, gw.parse(method), task, seed, folder=folder)


def run(sim):
    return list(sim.rounds())


def trace(folder, *rows):
    path = folder / "links.csv"
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return [f"trace({str(path)!r})"]


class Road:
    """Everything that passes between clients and servers, in order."""

    def __init__(self, monkeypatch, counting=Server):
        self.counting = counting
        self.raw, self.accepted, self.results, self.sent = {}, [], [], []
        compress, packets, receive = Client.compress_opened, Client.packets, Inbox.receive
        close = Server.close_round
        road = self

        def note(client, update):
            road.raw[client.client_id] = road.raw.get(client.client_id, 0) + np.asarray(update, np.float64)

        def spy_compress(client, update, *of_a_region, **options):
            if of_a_region:
                return compress(client, update, *of_a_region, **options)
            note(client, update)
            opened = compress(client, update, **options)
            road.sent.append((client.client_id, options.get("num_bytes"), len(opened.blob)))
            return opened

        def spy_packets(client, update, mtu, **options):
            note(client, update)
            return packets(client, update, mtu, **options)

        def spy_receive(inbox, blob, client_id=0, weight=1.0):
            receive(inbox, blob, client_id, weight)
            if type(inbox) is road.counting:
                road.accepted.append((client_id, getattr(blob, "blob", blob), weight, inbox.round))

        def spy_close(server):
            road.results.append(close(server))
            return road.results[-1]

        monkeypatch.setattr(Client, "compress_opened", spy_compress)
        monkeypatch.setattr(Client, "packets", spy_packets)
        monkeypatch.setattr(Inbox, "receive", spy_receive)
        monkeypatch.setattr(Server, "close_round", spy_close)

    def counted(self, client_id):
        return sum(gw.decompress(gw.decode(blob)).astype(np.float64) for i, blob, *_ in self.accepted if i == client_id)


# ---- the clock, against sums done by hand


def test_a_round_takes_download_training_and_upload(digits, tmp_path):
    links = trace(tmp_path, "0,0,8000,16000,0.25,2,1", "1,0,80000,160000,0.1,4,1")
    sim = simulation(digits, "topk(0.05)", clients=2, rounds=4, links=links)
    now, owed = 0.0, 0
    for m in run(sim):
        slow = (owed / 2000 + 0.25 if owed else 0) + 3 / 2
        fast = (owed / 20000 + 0.1 if owed else 0) + 3 / 4
        # the two uploads of a round differ by a few bytes: bound by both
        shortest, longest = m.uplink_bytes / 2 - 40, m.uplink_bytes / 2 + 40
        assert slow > fast
        assert now + slow + shortest / 1000 + 0.25 <= m.virtual_seconds <= now + slow + longest / 1000 + 0.25
        now, owed = m.virtual_seconds, m.downlink_bytes // 2


def test_one_client_by_the_byte(digits, tmp_path):
    links = trace(tmp_path, "0,0,8000,16000,0.25,2,1")
    sim = simulation(digits, clients=1, links=links, partition="iid")
    now, owed = 0.0, 0
    for m in run(sim):
        expected = now + (owed / 2000 + 0.25 if owed else 0) + 1.5 + m.uplink_bytes / 1000 + 0.25
        assert m.virtual_seconds == pytest.approx(expected, rel=1e-12)
        now, owed = m.virtual_seconds, m.downlink_bytes


def test_ideal_links_take_no_time(digits):
    assert run(simulation(digits))[-1].virtual_seconds == 0


def test_a_deadline_leaves_out_who_is_late(digits, tmp_path, monkeypatch):
    road = Road(monkeypatch)
    links = trace(tmp_path, "0,0,8000000,8000000,0.01,100,1", "1,0,8000000,8000000,0.01,1,1")
    sim = simulation(digits, clients=2, links=links, deadline_seconds=2.0)
    metrics = run(sim)
    assert [m.virtual_seconds for m in metrics] == [2.0 * (t + 1) for t in range(6)]
    assert {client for client, *_ in road.accepted} == {0}  # three steps take client 1 three seconds
    assert all(m.num_trained == m.num_received == 1 for m in metrics)


def test_a_late_payload_goes_back_into_the_residual(digits, tmp_path, monkeypatch):
    road = Road(monkeypatch)
    links = trace(tmp_path, "0,0,8000,8000000,0.01,100,1")
    sim = simulation(digits, "ef(topk(0.5))", clients=1, partition="iid", links=links, deadline_seconds=1.0, audit=True)
    metrics = run(sim)
    assert not road.accepted
    assert all(m.num_trained == 1 and m.num_received == 0 for m in metrics)
    np.testing.assert_allclose(sim.clients[0].state_dict()["residual"], road.raw[0], atol=1e-5)
    np.testing.assert_array_equal(sim.model, simulation(digits, clients=1, partition="iid").model)


def test_who_is_away_sits_out_and_catches_up(digits, tmp_path):
    links = trace(
        tmp_path,
        "0,0,8000000,8000000,0,1,1",
        "1,0,8000000,8000000,0,1,1",
        "1,3.5,8000000,8000000,0,1,0",
        "1,16.5,8000000,8000000,0,1,1",
    )
    sim = simulation(digits, clients=2, links=links, rounds=8, audit=True)
    metrics = run(sim)
    assert [m.num_trained for m in metrics] == [2, 1, 1, 1, 1, 1, 2, 2]
    assert [m.num_received for m in metrics] == [2, 1, 1, 1, 1, 1, 2, 2]  # would be away before round 1 is over
    member = sim.federation.members.all()[1]
    assert member.version == 8
    # what it missed came at once when it was back, then its share of each round
    lengths = [sum(roads) for roads in sim.federation.lengths]
    assert sum(m.downlink_bytes for m in metrics) == 2 * sum(lengths)
    assert metrics[6].downlink_bytes == sum(lengths[1:6]) + 2 * lengths[6]


def test_the_whole_model_where_that_is_shorter(digits, tmp_path):
    links = trace(
        tmp_path,
        "0,0,8000000,8000000,0,1,1",
        "1,0,8000000,8000000,0,1,1",
        "1,1,8000000,8000000,0,1,0",
        "1,46,8000000,8000000,0,1,1",
    )
    sim = simulation(digits, "dense()", clients=2, links=links, rounds=18)
    metrics = run(sim)
    back = next(m for m in metrics[1:] if m.num_trained == 2)
    lengths = [sum(roads) for roads in sim.federation.lengths]
    assert sum(lengths[: back.round]) > 2 * back.other_bytes > 0
    assert sum(m.downlink_bytes for m in metrics) < 2 * sum(lengths)


def test_sampling_draws_the_share_asked_for(digits):
    sim = simulation(digits, clients=20, participation=0.25, rounds=12)
    metrics = run(sim)
    assert [m.num_trained for m in metrics] == [5] * 12
    assert 12 < len(sim.clients) <= 20  # other ones each time
    other = simulation(digits, clients=20, participation=0.25, rounds=12)
    run(other)
    np.testing.assert_array_equal(sim.model, other.model)


# ---- mass: law 1, with books of our own


@pytest.mark.parametrize("method", ["ef(topk(0.02))", "ef(topk(0.05) | uniform(4))", "ef(randk(0.02))"])
@pytest.mark.parametrize(
    "settings",
    [LOSSY, LOSSY | {"participation": 0.5}, LOSSY | {"packet_loss": 0.0, "disconnection": 0.8}, {"regions": 2} | LOSSY],
    ids=["lossy", "sampled", "disconnected", "regions"],
)
def test_nothing_is_lost_on_bad_links(digits, monkeypatch, method, settings):
    road = Road(monkeypatch, gw.Region if "regions" in settings else Server)
    sim = simulation(digits, method, rounds=8, **settings)
    metrics = run(sim)
    assert sum(m.num_duplicates for m in metrics) > 0
    f = sim.federation
    some_lost = False
    for member in f.members.all():
        i = member.client.client_id
        if member.pending:
            member.owed_bytes = 0
            f.tell(member)
        residual = member.client.state_dict()["residual"]
        counted = road.counted(i) if any(c == i for c, *_ in road.accepted) else 0
        error = np.linalg.norm(counted + residual - road.raw[i]) / np.linalg.norm(road.raw[i])
        assert error < 1e-5
        some_lost = some_lost or np.linalg.norm(residual) > 0
    assert some_lost


BUFFERED = {"algorithms": ["fedbuff(buffer_size=4)"], "links": ["mix(fibre=2, lte=2, lora=1)"], "rounds": 40}


@pytest.mark.parametrize(
    "settings",
    [LOSSY, {"max_norm": 0.05}, {"regions": 2, "max_norm": 0.05}, {}, BUFFERED, BUFFERED | {"max_norm": 0.05}],
    ids=["lossy", "clipped", "regions", "plain", "buffered", "buffered and clipped"],
)
def test_the_audit_finds_nothing_missing(digits, settings):
    sim = simulation(digits, audit=True, **settings)
    metrics = run(sim)
    assert 0 < sim.summary()["conservation_error"] < 1e-6
    clipped = sum(m.num_clipped for m in metrics)
    assert (clipped > 0) == ("max_norm" in settings)
    assert (sim.federation.ledger.cut_norm() > 0) == (clipped > 0)


def test_the_audit_notices_a_loss(digits, monkeypatch):
    restore = type(gw.parse("ef(topk(0.02))")).restore

    def forgetful(self, payload, state, reference=None):
        return state if payload.packet and payload.packet[0] == 0 else restore(self, payload, state, reference)

    monkeypatch.setattr(type(gw.parse("ef(topk(0.02))")), "restore", forgetful)
    with pytest.raises(StateError, match=r"client \d: .* of its updates are missing"):
        run(simulation(digits, audit=True, rounds=12, **LOSSY))


def test_an_audit_needs_error_feedback(digits):
    with pytest.raises(ConfigError, match=r"an audit needs ef\(...\) with no decay.* got topk\(0.1\)"):
        simulation(digits, "topk(0.1)", audit=True)


def test_the_way_down_keeps_what_it_does_not_send(digits, monkeypatch):
    road = Road(monkeypatch)
    sim = simulation(digits, downlink="ef(topk(0.01))")
    run(sim)
    means = sum(r.update.astype(np.float64) for r in road.results)
    applied = sum(r.applied.astype(np.float64) for r in road.results)
    kept = sim.federation.server.state_dict()["scheme"]["residual"]
    assert np.linalg.norm(kept) > 0
    np.testing.assert_allclose(applied + kept, means, atol=1e-6)
    assert all(np.count_nonzero(r.applied) <= 96 for r in road.results)


# ---- algorithms, inside the whole system


def test_fedbuff_is_the_sum_of_weighed_updates(digits, monkeypatch):
    road = Road(monkeypatch)
    sim = simulation(digits, "dense()", algorithms=["fedbuff(buffer_size=3)"], links=["mix(fibre=2, lte=3)"], rounds=8)
    initial = sim.model.astype(np.float64)
    metrics = run(sim)
    for t in range(8):
        mine = [(blob, weight) for _, blob, weight, index in road.accepted if index == t]
        assert len(mine) == 3
        ages = [t - gw.decode(blob).round for blob, _ in mine]
        assert [weight for _, weight in mine] == pytest.approx([(1 + age) ** -0.5 for age in ages])
        for (blob, _), age in zip(mine, ages, strict=True):
            initial += gw.decompress(gw.decode(blob)).astype(np.float64) * (1 + age) ** -0.5 / 3
        assert metrics[t].staleness == pytest.approx(np.mean(ages))
    np.testing.assert_allclose(sim.model, initial, atol=1e-6)
    assert max(m.staleness for m in metrics) > 0


def test_fedasync_steps_with_each_payload(digits, monkeypatch):
    road = Road(monkeypatch)
    algorithm = "fedasync(mixing=0.5, staleness='hinge', slope=2.0, threshold=1)"
    sim = simulation(digits, "dense()", algorithms=[algorithm], links=["mix(fibre=2, lte=3)"], rounds=20)
    model = sim.model.astype(np.float64)
    run(sim)
    for t, (_, blob, weight, index) in enumerate(road.accepted):
        age = t - gw.decode(blob).round
        expected = 1.0 if age <= 1 else 1 / (2 * (age - 1) + 1)
        assert (index, weight) == (t, pytest.approx(expected))
        model += 0.5 * expected * gw.decompress(gw.decode(blob))
    np.testing.assert_allclose(sim.model, model, atol=1e-6)


def test_asynchronous_clients_do_not_wait(digits, tmp_path):
    links = trace(tmp_path, "0,0,8000000,8000000,0.001,30,1", "1,0,8000000,8000000,0.001,3,1")
    sim = simulation(digits, clients=2, algorithms=["fedasync()"], links=links, rounds=22)
    run(sim)
    counts = [client.sequence for client in sim.clients]
    assert counts[0] == pytest.approx(10 * counts[1], abs=6)
    assert sim.federation.seconds < 2.5


def test_too_old_a_payload_is_refused_and_kept(digits, tmp_path):
    links = trace(tmp_path, "0,0,8000000,8000000,0.001,30,1", "1,0,8000000,8000000,0.001,3,1")
    settings = {"clients": 2, "algorithms": ["fedasync()"], "links": links, "rounds": 40, "max_staleness": 3}
    sim = simulation(digits, audit=True, **settings)
    metrics = run(sim)
    assert sum(m.num_late for m in metrics) >= 2
    assert sim.summary()["conservation_error"] < 1e-6
    assert np.linalg.norm(sim.clients[1].state_dict()["residual"]) > 0


def test_examples_that_come_in_set_the_pace(digits, tmp_path):
    links = trace(tmp_path, "0,0,8000000,8000000,0.001,1000,1")
    settings = {"clients": 1, "partition": "iid", "algorithms": ["fedasync()"], "links": links, "rounds": 5}
    sim = simulation(digits, examples_per_second=12.0, **settings)
    seconds = [m.virtual_seconds for m in run(sim)]
    # 3 steps of 8 examples at 12 a second: a turn every 2 seconds
    np.testing.assert_allclose(seconds, [2, 4, 6, 8, 10], atol=0.1)


def test_scaffold_is_algorithm_one(digits):
    """Control variates of all clients and the model after some rounds, against Algorithm 1 written here."""
    rate, steps, rounds, clients = 0.2, 3, 4, 5
    sim = simulation(digits, "dense()", algorithms=["scaffold()"], participation=0.6, learning_rate=rate, rounds=rounds)
    f = sim.federation
    x, c = sim.model.astype(np.float64), np.zeros(9610)
    c_i = np.zeros((clients, 9610))
    module = f.trainer.model
    for index in range(rounds):
        ids = Key(0, index, purpose="sampling").choice(clients, 3)
        deltas, changes, weights = [], [], []
        for i in ids:
            y = x.copy()
            for rows in draw_batches(f.shards[i], Key(0, index, int(i)), steps, 8):
                f.trainer._load(torch.from_numpy(y.astype(np.float32)))
                loss = torch.nn.functional.cross_entropy(module(digits.train_inputs[rows]), digits.train_targets[rows])
                g = torch.cat([p.reshape(-1) for p in torch.autograd.grad(loss, list(module.parameters()))]).numpy()
                y -= rate * (g - c_i[i] + c)
            changes.append(c_i[i] - c + (x - y) / (steps * rate) - c_i[i])
            deltas.append(y - x)
            weights.append(len(f.shards[i]))
        x = x + np.average(deltas, axis=0, weights=weights)
        for i, change in zip(ids, changes, strict=True):
            c_i[i] += change
        c = c + len(ids) / clients * np.mean(changes, axis=0)
    run(sim)
    names = [t.name for t in sim.layout.tensors]
    assert names == [name for name, _ in module.named_parameters()]
    np.testing.assert_allclose(sim.model, x, atol=2e-5)
    np.testing.assert_allclose(f.controls.value, c, atol=2e-4)
    for member in f.members.all():
        np.testing.assert_allclose(member.variate, c_i[member.client.client_id], atol=2e-4)


def test_control_variates_are_counted_apart(digits, monkeypatch):
    sent, make = [], Controls.receive

    def spy(self, opened, client_id):
        sent.append(len(opened.blob))
        return make(self, opened, client_id)

    monkeypatch.setattr(Controls, "receive", spy)
    plain, sim = simulation(digits), simulation(digits, algorithms=["scaffold()"])
    before, after = run(plain), run(sim)
    extra = sum(m.other_bytes for m in after) - sum(m.other_bytes for m in before)
    down = [control for _, control in sim.federation.lengths]
    assert extra == sum(sent) + 5 * sum(down)
    assert min(sum(sent), sum(down)) > 10_000
    assert len(sent) == 30
    assert sum(m.downlink_bytes for m in after) == 5 * sum(model for model, _ in sim.federation.lengths)
    dense_controls = simulation(digits, algorithms=["scaffold(control='dense()')"])
    run(dense_controls)
    assert dense_controls.totals.other_bytes > 5 * sim.totals.other_bytes


def test_a_server_optimiser_moves_the_model(digits, monkeypatch):
    road = Road(monkeypatch)
    sim = simulation(digits, "dense()", algorithms=["fedavgm(momentum=0.5, server_learning_rate=0.8)"])
    model, velocity = sim.model.astype(np.float64), 0.0
    run(sim)
    for result in road.results:
        velocity = 0.5 * velocity + result.update.astype(np.float64)
        model += 0.8 * velocity
    np.testing.assert_allclose(sim.model, model, atol=1e-6)


# ---- budgets, regions, aggregation


def test_budgets_are_kept_and_follow_the_link(digits, monkeypatch):
    road = Road(monkeypatch)
    links, spec = ["mix(lte=2, satellite=1, lora=2)"], "ef(topk(0.01))"
    sim = simulation(
        digits, spec, links=links, deadline_seconds=5.0, budgets=["fit()"], downlink="ef(topk(0.01))", rounds=4
    )
    metrics = run(sim)
    assert all(size <= budget for _, budget, size in road.sent)
    rates = {i: c.at(0.0).uplink_bits_per_second for i, c in enumerate(sim.federation.connections)}
    slow = [size for i, _, size in road.sent if rates[i] == 5000]
    fast = [size for i, _, size in road.sent if rates[i] > 5000]
    assert 0 < max(slow) < 5 * 5000 / 8 < min(fast)
    assert all(m.virtual_seconds <= 5.0 * (m.round + 1) + 1e-9 for m in metrics)


def test_adaptopk_spreads_the_time_of_budgets(digits):
    settings = {"links": ["cable()"], "deadline_seconds": 2.0, "budgets": ["fit()"], "rounds": 8}
    f = simulation(digits, "ef(adaptopk(0.05, t_hat=4))", **settings).federation
    seconds = np.array([f.seconds_of_round(t) for t in range(8)])
    kept = gw.adaptopk(0.05, t_hat=4).schedule(9610, 8)
    np.testing.assert_allclose(seconds, 2.0 * kept / kept.mean())
    assert len(set(kept)) > 1
    f = simulation(digits, "ef(topk(0.05))", **settings).federation
    assert {f.seconds_of_round(t) for t in range(8)} == {2.0}


@pytest.mark.parametrize("method", ["dense()", "ef(topk(0.05))", "tcs(0.1, 0.01)"])
def test_regions_change_rounding_only(digits, method):
    flat, sim = simulation(digits, method, rounds=3), simulation(digits, method, rounds=3, regions=2)
    run(flat)
    metrics = run(sim)
    np.testing.assert_allclose(sim.model, flat.model, atol=2e-5)
    assert all(m.wan_uplink_bytes > 0 and m.wan_downlink_bytes == 2 * m.downlink_bytes // 5 for m in metrics)
    if method == "ef(topk(0.05))":
        assert sum(m.wan_uplink_bytes for m in metrics) < sum(m.uplink_bytes for m in metrics)


def test_the_way_to_the_server_takes_time(digits, tmp_path):
    links = trace(tmp_path, "0,0,8000,8000,0.5,1,1")
    sim = simulation(digits, regions=1, region_link=links[0], rounds=2)
    first, second = run(sim)
    up = first.wan_uplink_bytes / 1000 + 0.5
    down = first.wan_downlink_bytes / 1000 + 0.5
    assert first.virtual_seconds == pytest.approx(up + down, rel=1e-9)
    assert second.virtual_seconds > first.virtual_seconds


def test_a_poisoned_client_is_outvoted(digits, monkeypatch):
    compress = Client.compress_opened

    def poisoned(client, update, **options):
        return compress(client, np.full_like(update, 1e6) if client.client_id == 0 else update, **options)

    monkeypatch.setattr(Client, "compress_opened", poisoned)
    settings = {"rounds": 30, "partition": "iid", "evaluate_every": 30}
    accuracies = {}
    for rule in ("mean()", "median()", "trimmed_mean(0.2)"):
        sim = simulation(digits, "dense()", aggregation=rule, **settings)
        run(sim)
        accuracies[rule] = sim.totals.accuracy
    assert accuracies["mean()"] < 0.3 < 0.85 < min(accuracies["median()"], accuracies["trimmed_mean(0.2)"])


def test_a_median_over_different_supports_is_refused(digits):
    with pytest.raises(ConfigError, match=r"median\(\) needs clients that all send the same coordinates"):
        simulation(digits, "ef(topk(0.01))", aggregation="median()")


def test_over_the_air_uses_the_channel_once_for_all(digits):
    settings = {"aggregation": "over_the_air(snr_db=40.0)", "rounds": 3}
    sim = simulation(digits, "randk(0.1, shared=True)", **settings)
    run(sim)
    assert sim.summary()["channel_uses"] == 3 * 961
    quiet = simulation(digits, "randk(0.1, shared=True)", rounds=3)
    run(quiet)
    assert 0 < np.linalg.norm(sim.model - quiet.model) < 0.1 * np.linalg.norm(quiet.model)


def test_silent_clients_keep_their_update(digits):
    rule = "over_the_air(snr_db=60.0, fading='rayleigh', threshold=1.0)"
    sim = simulation(digits, "ef(randk(0.1, shared=True))", aggregation=rule, rounds=6)
    assert 0 < sum(m.num_received for m in run(sim)) < 25


# ---- going on


CASES = {
    "sampled": {"participation": 0.4},
    "scaffold": {"algorithms": ["scaffold()"], "participation": 0.6},
    "fedadam": {"algorithms": ["fedadam()"], "downlink": "ef(topk(0.05))"},
    "lossy": LOSSY,
    "regions": {"regions": 2, "forward": "ef(topk(0.05))", "max_norm": 0.5},
    "budgets": {"links": ["mix(lte=3, lora=2)"], "deadline_seconds": 4.0, "budgets": ["fit()"]},
    "fedbuff": {"algorithms": ["fedbuff(buffer_size=2)"], "links": ["mix(fibre=2, lte=3)"], "rounds": 9},
    "fedasync": {
        "algorithms": ["fedasync()"],
        "links": ["mix(fibre=2, lora=3)"],
        "rounds": 30,
        "participation": 0.6,
        "examples_per_second": 30.0,
    },
    "air": {"methods": ["ef(randk(0.1, shared=True))"], "aggregation": "over_the_air(fading='rayleigh')"},
}


ON_DISK = ("sampled", "scaffold", "lossy", "fedasync")  # the others with the slow tests


@pytest.mark.parametrize(
    ("name", "on_disk"),
    [
        *(pytest.param(name, False, id=f"{name}-in memory") for name in CASES),
        *(
            pytest.param(name, True, id=f"{name}-on disk", marks=() if name in ON_DISK else pytest.mark.slow)
            for name in CASES
        ),
    ],
)
def test_a_run_goes_on_as_if_never_stopped(digits, tmp_path, name, on_disk):
    settings = {**CASES[name], "clients_on_disk": on_disk}
    method = settings.pop("methods", ["ef(topk(0.02))"])[0]
    folders = [tmp_path / n for n in "abc"]
    for folder in folders:
        folder.mkdir()
    whole = simulation(digits, method, folders[0], **settings)
    expected = run(whole)
    first = simulation(digits, method, folders[1], **settings)
    rounds = first.rounds()
    for _ in range(3):
        next(rounds)
    state = first.state_dict()
    first.saved()
    next(rounds)  # what comes after the checkpoint is lost
    first.close()
    second = simulation(digits, method, folders[1], **settings)
    second.load_state_dict(state)
    rest = run(second)
    timeless = {"seconds": 0.0, "compression_seconds": 0.0}
    assert [vars(m) | timeless for m in rest] == [vars(m) | timeless for m in expected[3:]]
    assert second.summary()["model_sha256"] == whole.summary()["model_sha256"]
    if on_disk:
        memory = simulation(digits, method, **{**settings, "clients_on_disk": False})
        run(memory)
        assert memory.summary()["model_sha256"] == whole.summary()["model_sha256"]
    for sim in (whole, second):
        sim.close()


def test_clients_on_disk_are_not_in_memory(digits, tmp_path):
    sim = simulation(digits, clients=40, participation=0.1, clients_on_disk=True, rounds=10, folder=tmp_path)
    run(sim)
    members = sim.federation.members
    assert isinstance(members, MembersOnDisk)
    assert not members._made
    assert len(sim.clients) > 20
    sim.state_dict()
    assert sum(file.stat().st_size for file in tmp_path.glob("members.sqlite*")) > 4 * 9610 * len(sim.clients)
    sim.saved()
    assert members._base.execute("SELECT COUNT(*) FROM members").fetchone()[0] == len(sim.clients)
    sim.close()


def test_missing_rows_are_noticed(digits, tmp_path):
    sim = simulation(digits, clients_on_disk=True, folder=tmp_path)
    rounds = sim.rounds()
    next(rounds)
    state = sim.state_dict()
    sim.federation.members._base.execute("DELETE FROM members WHERE client = 3")
    sim.federation.members._base.commit()
    sim.close()
    other = simulation(digits, clients_on_disk=True, folder=tmp_path)
    with pytest.raises(StateError, match=r"members.sqlite: holds \d clients, expected 5"):
        other.load_state_dict(state)
    other.close()


def test_clients_on_disk_need_a_folder(digits):
    with pytest.raises(ConfigError, match="needs a folder"):
        simulation(digits, clients_on_disk=True)


def test_a_run_ends_at_its_target(digits):
    sim = simulation(digits, "dense()", rounds=100, target_accuracy=0.8, stop_at_target=True, partition="iid")
    metrics = run(sim)
    summary = sim.summary()
    assert metrics[-1].accuracy >= 0.8 > max(m.accuracy for m in metrics[:-1])
    assert (summary["target_round"], summary["status"]) == (metrics[-1].round, "complete")
    assert summary["target_uplink_bytes"] == sum(m.uplink_bytes for m in metrics)
    assert summary["target_total_bytes"] == sum(m.uplink_bytes + m.downlink_bytes + m.other_bytes for m in metrics)


def test_drift_is_how_far_clients_are_from_their_mean(digits, monkeypatch):
    found = []
    train = federation_module.Federation.train

    def spy(self, *args, **options):
        found.append(train(self, *args, **options))
        return found[-1]

    monkeypatch.setattr(federation_module.Federation, "train", spy)
    for m, trained in zip(run(simulation(digits)), found, strict=True):
        updates = trained.updates.astype(np.float64)
        mean = np.average(updates, axis=0, weights=trained.weights)
        assert m.drift_norm == pytest.approx(np.sqrt(np.mean(np.sum((updates - mean) ** 2, axis=1))), rel=1e-5)
        assert m.update_norm == pytest.approx(np.sqrt(np.mean(np.sum(updates**2, axis=1))), rel=1e-6)


@pytest.mark.parametrize(
    ("row", "received"),
    [
        ("0,0,0,8000,0.1,2,1", [1, 1]),  # never uploads
        ("0,0,8000,0,0.1,2,1", [2, 1]),  # never downloads
        ("0,0,8000,8000,0.1,0,1", [1, 1]),  # never trains
    ],
)
def test_what_never_arrives_is_not_counted(digits, tmp_path, row, received):
    links = trace(tmp_path, row, "1,0,8000,8000,0.1,2,1")
    metrics = run(simulation(digits, clients=2, rounds=2, links=links))
    assert [m.num_received for m in metrics] == received
    assert all(m.virtual_seconds < np.inf for m in metrics)
    assert metrics[0].virtual_seconds > 1.5


def test_a_round_waits_until_who_vanished_has_left(digits, tmp_path):
    links = trace(tmp_path, "0,0,8000,8000,0.1,2,1", "1,0,80,8000,0.1,2,1", "1,9.5,80,8000,0.1,2,0")
    sim = simulation(digits, "ef(topk(0.05))", clients=2, rounds=1, links=links, partition="iid")
    [m] = run(sim)
    assert (m.num_trained, m.num_received, m.virtual_seconds) == (2, 1, 9.5)


def test_who_joins_late_pays_for_the_control_variate(digits, monkeypatch):
    sim = simulation(digits, algorithms=["scaffold()"], clients=20, participation=0.2, rounds=2)
    f, sent, receive = sim.federation, [], Controls.receive

    def spy(self, opened, client_id):
        sent.append(len(opened.blob))
        return receive(self, opened, client_id)

    monkeypatch.setattr(Controls, "receive", spy)
    rounds = sim.rounds()
    next(rounds)
    known, whole = len(sim.clients), [len(blob) for blob in f.whole_blobs()]
    assert len(whole) == 2
    assert min(whole) > 1000
    sent.clear()
    second = next(rounds)
    joined = len(sim.clients) - known
    assert joined > 0
    assert second.other_bytes == joined * sum(whole) + sum(sent) + 4 * f.lengths[1][1]


@pytest.mark.parametrize("control", ["ef(topk(0.3))", "dense()", "topk(0.3)"])
@pytest.mark.parametrize(
    "settings",
    [
        {"aggregation": "over_the_air(fading='rayleigh', threshold=1.0)"},
        {"links": ["mix(lte=3, lora=2)"], "deadline_seconds": 5.0, "downlink": "ef(topk(0.05))"},
    ],
    ids=["silent", "late"],
)
def test_the_servers_control_is_the_mean_of_the_clients(digits, control, settings):
    method = "ef(randk(0.1, shared=True))"
    sim = simulation(digits, method, algorithms=[f"scaffold(control='{control}')"], rounds=10, **settings)
    run(sim)
    f = sim.federation
    for member in f.members.all():
        if member.pending:
            f.tell(member)
    variates = np.sum([member.variate for member in f.members.all()], axis=0, dtype=np.float64)
    kept = sum((m.control.state_dict()["residual"] for m in f.members.all()), 0.0) if "ef" in control else 0.0
    down = f.controls.server.state_dict()["scheme"].get("residual", 0.0)
    missing = variates - kept - 5 * (f.controls.value + down)
    assert np.linalg.norm(missing) < 1e-4 * np.linalg.norm(variates)


def test_scaffold_shares_a_budget(digits):
    settings = {"links": ["lora()"], "deadline_seconds": 8.0, "budgets": ["fit()"], "downlink": "ef(topk(0.01))"}
    algorithm = "scaffold(control='ef(topk(0.01))')"
    counts = {}
    for name in ("fedavg()", algorithm):
        sim = simulation(digits, "ef(topk(0.3))", algorithms=[name], rounds=6, **settings)
        counts[name] = sum(m.num_received for m in run(sim))
    assert counts[algorithm] >= 0.5 * counts["fedavg()"] > 0


def test_a_method_that_cannot_be_cut_goes_whole_and_late(digits):
    settings = {"links": ["mix(fibre=3, lora=2)"], "deadline_seconds": 4.0, "budgets": ["fit()"], "rounds": 2}
    metrics = run(simulation(digits, "dense()", **settings))
    assert 0 < sum(m.num_received for m in metrics) < sum(m.num_trained for m in metrics)


def test_a_schedule_on_the_way_down_knows_how_long_the_run_is(digits):
    sim = simulation(digits, downlink="ef(adaptopk(0.1))")
    run(sim)
    kept = gw.adaptopk(0.1).schedule(9610, 6)
    assert gw.inspect(sim.federation.last_blobs[0])["num_kept"] <= kept[-1]


def test_an_interrupted_download_is_not_free(digits, tmp_path):
    rows = ["0,0,8000000,8000000,0.01,100,1"]
    rows += [
        f"1,{t},8000000,{rate},0.01,100,{there}"
        for t, rate, there in [(0, 8_000_000, 1), (0.5, 4000, 0), (2, 4000, 1), (3, 4000, 0), (8, 4000, 1)]
    ]
    settings = {"clients": 2, "algorithms": ["fedasync()"], "rounds": 300, "downlink": "ef(topk(0.01))"}
    sim = simulation(digits, links=trace(tmp_path, *rows), **settings)
    times = {}
    for m in run(sim):
        times[m.round] = m.virtual_seconds
    assert sim.clients[1].sequence > 1


def test_turns_longer_than_any_session_end_the_run(digits, tmp_path):
    rows = [f"0,{t},8000,8000,0.01,1,{t % 2 == 0:d}" for t in range(2000)]
    sim = simulation(digits, clients=1, partition="iid", algorithms=["fedasync()"], links=trace(tmp_path, *rows))
    with pytest.raises(gw.ProtocolError, match=r"round 0: 101 turns in a row took longer than a session"):
        run(sim)


def test_a_regions_draws_are_its_own():
    layout, compressor = gw.Layout.flat(1000), gw.randk(0.1, unbiased=True)
    region, client = gw.Region(compressor, layout, region_id=0, forward=compressor), gw.Client(compressor, layout)
    region.receive(client.compress(np.ones(1000, np.float32)))
    update = gw.decompress(gw.decode(region.forward().blob))
    assert np.count_nonzero(update) < 50  # of 100 coordinates the region drew, those the client had drawn, too


def test_an_audit_goes_on(digits):
    sim = simulation(digits, audit=True, rounds=12, **LOSSY)
    rounds = sim.rounds()
    for _ in range(5):
        next(rounds)
    other = simulation(digits, audit=True, rounds=12, **LOSSY)
    other.load_state_dict(sim.state_dict())
    run(other)
    run(sim)
    assert other.summary()["conservation_error"] == sim.summary()["conservation_error"] > 0


def test_payloads_lean_on_references_of_closed_rounds(digits, monkeypatch):
    road = Road(monkeypatch)
    settings = {"algorithms": ["fedbuff(buffer_size=2)"], "links": ["mix(fibre=2, lte=3)"], "rounds": 20}
    run(simulation(digits, "ef(tcs(0.05, 0.01))", audit=True, **settings))
    old = 0
    for _, blob, _, index in road.accepted:
        payload = gw.decode(blob)
        old += payload.reference_digest is not None and payload.round < index
    assert old > 3
