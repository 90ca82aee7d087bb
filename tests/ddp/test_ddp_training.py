"""Real gloo processes train with compressed gradients: laws 1 and 2, and DDP's own options."""

import ddp_cases
import numpy as np
import pytest

import gradwire as gw
from gradwire.compressors.feedback import has_feedback

# spec, workers, options of DDP
CASES = [
    ("ef(topk(0.05) | fractional(8))", 3, {}),
    ("ef(topk(0.05) | fractional(8))", 2, {"bucket_cap_mb": 0.004}),
    ("ef(topk(0.05, scope=64) | uniform(4), decay=0.9)", 3, {"bucket_cap_mb": 0.004}),
    ("ef(tcs(0.05, 0.02) | fractional(8))", 3, {"bucket_cap_mb": 0.004}),
    ("ef(tcs(0.05, 0.02))", 2, {}),
    ("ef(regtopk(0.05))", 3, {}),
    ("topk(0.1) | sign(scope='tensor')", 3, {"gradient_as_bucket_view": True}),
    ("momentum_correction(topk(0.05))", 3, {"gradient_as_bucket_view": True, "bucket_cap_mb": 0.004}),
    ("ef(topk(0.05))", 3, {"static_graph": True, "bucket_cap_mb": 0.004}),
    ("ef(topk(0.05))", 3, {"unused": True, "bucket_cap_mb": 0.004}),
    ("ef(topk(0.05))", 3, {"channels_last": True, "gradient_as_bucket_view": True}),
    ("ef(topk(0.05))", 2, {"no_sync": 2}),
    ("ef(topk(0.05))", 3, {"dtype": "bfloat16"}),
    ("ef(randk(0.05, shared=True))", 2, {}),
    ("ef(randk(0.05, shared=True))", 3, {"bucket_cap_mb": 0.004}),
    ("ef(cyclic(0.1), decay=0.9)", 3, {"gradient_as_bucket_view": True}),
    ("momentum_correction(randk(0.05, shared=True))", 2, {}),
    ("ef(fp16())", 2, {}),
    ("dense()", 2, {}),
    ("dense()", 3, {"bucket_cap_mb": 0.004, "channels_last": True}),
    ("uniform(8)", 3, {}),
    ("ef(topk(0.05) | fractional(8))", 2, {"bare": True, "bucket_cap_mb": 0.004}),
    ("ef(topk(0.05) | fractional(8))", 3, {"device": True, "bucket_cap_mb": 0.004}),
]
SUMMED = {  # what all workers share is summed where gathering it takes no fewer bytes, after so many steps that show it
    "ef(tcs(0.05, 0.02))": 2,
    "ef(randk(0.05, shared=True))": 1,
    "ef(cyclic(0.1), decay=0.9)": 1,
    "momentum_correction(randk(0.05, shared=True))": 1,
    "dense()": 1,
}


def of_workers(results):
    return [r for r in results if r is not None]


def layout_of(names):
    """By name, as in the model; or by number, where the model was not given."""
    shapes = {name: p.shape for name, p in ddp_cases.net().named_parameters()}
    if names[0] == "0":
        shapes = dict(zip(names, shapes.values(), strict=True))
    assert list(shapes) == names
    return gw.Layout.from_arrays({name: np.ones(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize(("spec", "num_workers", "options"), CASES, ids=lambda x: str(x))
def test_training(ranks, spec, num_workers, options):
    workers = of_workers(ranks.run(ddp_cases.train, spec, num_workers, 5, options))
    assert len(workers) == num_workers
    for worker in workers[1:]:
        assert worker["hashes"] == workers[0]["hashes"], "parameters are the same at every step"
    # law 2: clients and a server with the same updates write the same bytes and apply the same numbers
    layout, compressor = layout_of(workers[0]["names"]), gw.parse(spec)
    clients = [gw.Client(compressor, layout, client_id=i) for i in range(num_workers)]
    server = gw.Server(compressor, layout)
    late = 1 if options.get("bare") else 0  # the first blobs were not listened to there
    for step in range(5):
        blobs = [c.compress(w["own"][step]) for c, w in zip(clients, workers, strict=True)]
        for client, worker, blob in zip(clients, workers, blobs, strict=True):
            if step >= late and worker["paths"][step] == "gather":
                assert worker["told"][step] == blob, step
            server.receive(blob, client.client_id)
        result = server.close_round()
        for client in clients:
            client.end_round(result.blob)
        applied = result.applied
        if options.get("dtype") == "bfloat16":
            applied = ddp_cases.torch.from_numpy(applied).bfloat16().float().numpy()
        # a ring adds three numbers in an order of its own
        tolerance = 0 if num_workers == 2 or set(workers[0]["paths"]) == {"gather"} else 1e-6
        for worker in workers:
            assert worker["paths"] == workers[0]["paths"]
            np.testing.assert_allclose(worker["given"][step], applied, rtol=0, atol=tolerance * np.abs(applied).max())
    first = SUMMED.get(spec, 5)
    assert workers[0]["paths"] == ["gather"] * first + ["phases"] * (5 - first)
    # law 1, in float32 applied gradients
    if has_feedback(compressor) and "decay" not in spec and "momentum" not in spec and "dtype" not in options:
        raw = np.sum([w["own"] for w in workers], axis=(0, 1), dtype=np.float64)
        sent = num_workers * np.sum(workers[0]["given"], axis=0, dtype=np.float64)
        left = np.sum([w["residual"] for w in workers], axis=0, dtype=np.float64)
        np.testing.assert_allclose(sent + left, raw, rtol=0, atol=1e-5 * np.abs(raw).max())


def in_phases(compressor, updates, states, step):
    """What workers come to that sum in this process, and their next states."""
    agreed = [gw.Round(index=step, key=gw.Key(0, step, i), num_workers=len(updates)) for i in range(len(updates))]
    running = [compressor.phases(u, s, r) for u, s, r in zip(updates, states, agreed, strict=True)]
    total, ended = None, []
    while not ended:
        sent = []
        for phases in running:
            try:
                sent.append(phases.send(total))
            except StopIteration as done:
                ended.append(done.value)
        total = np.sum(sent, axis=0, dtype=np.float64).astype(np.float32)
    return ended


@pytest.mark.parametrize("spec", ["ef(powersgd(2))", "powersgd(1)", "ef(leader(0.05))"])
def test_training_in_phases(ranks, spec):
    workers = of_workers(ranks.run(ddp_cases.train, spec, 3, 4, {"bucket_cap_mb": 0.004}))
    compressor, layout = gw.parse(spec), layout_of(workers[0]["names"])
    assert len({tuple(w["hashes"]) for w in workers}) == 1
    states = [compressor.init(layout) for _ in workers]
    for step in range(4):
        ended = in_phases(compressor, [w["own"][step] for w in workers], states, step)
        states = [state for _, state in ended]
        for worker, (mean, _) in zip(workers, ended, strict=True):
            np.testing.assert_allclose(worker["given"][step], mean, rtol=0, atol=1e-3 * np.abs(mean).max())
    if spec.startswith("ef"):
        raw = np.sum([w["own"] for w in workers], axis=(0, 1), dtype=np.float64)
        left = np.sum([w["residual"] for w in workers], axis=0, dtype=np.float64)
        sent = 3 * np.sum(workers[0]["given"], axis=0, dtype=np.float64)
        np.testing.assert_allclose(sent + left, raw, rtol=0, atol=1e-5 * np.abs(raw).max())
