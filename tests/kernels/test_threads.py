"""Threads of the kernels: as many as allowed, the same results with any number, safe together and after a fork."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import gradwire as gw
from gradwire.kernels import ops, reference, threads

D = 2_000_000


def blobs(seed: int) -> list[bytes]:
    """What a client sends in two rounds."""
    rng = np.random.default_rng(seed)
    client = gw.Client(gw.parse("ef(topk(0.1) | fractional(16))"), gw.Layout.flat(D))
    return [client.compress(rng.standard_normal(D).astype(np.float32), round=r) for r in range(2)]


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_as_many_as_torch_uses(torch_threads):
    for number in (1, 3):
        torch_threads(number)
        assert threads.num_threads() == number
        assert len(threads.split(D)) == number
    assert len(threads.split(1000)) == 1
    assert threads.split(0) == []


@pytest.mark.parametrize("size", [1, 65_536, 524_287, 524_288, 10_000_000, 10_000_001])
def test_ranges_tile(torch_threads, size):
    for number in (1, 2, 7):
        torch_threads(number)
        covered = [i for r in threads.split(size) for i in (r.start, r.stop)]
        assert covered[0] == 0
        assert covered[-1] == size
        assert covered[1:-1:2] == covered[2::2]
        assert not any(start % threads.ALIGNED for start in covered[::2])


@pytest.mark.parametrize("size", [2**32 - 1, 2**32, 2**33 + 2**20, 2**40 + 1])
def test_places_in_a_range_fit_in_32_bits(torch_threads, size):
    for number in (1, 2, 7):
        torch_threads(number)
        ranges = threads.split(size)
        assert max(r.stop - r.start for r in ranges) < 2**32
        assert [ranges[0].start, *(r.stop for r in ranges)] == [*(r.start for r in ranges), size]
        assert not any(r.start % threads.ALIGNED for r in ranges)


def test_the_bytes_do_not_depend_on_them(torch_threads):
    found = []
    for number in (1, 2, 5):
        torch_threads(number)
        found.append(blobs(0))
    assert found[0] == found[1] == found[2]


def test_several_threads_at_once(torch_threads):
    torch_threads(2)
    expected = [blobs(seed) for seed in range(4)]
    found: dict[int, list[bytes]] = {}
    workers = [threading.Thread(target=lambda s=seed: found.update({s: blobs(s)})) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [found[seed] for seed in range(4)] == expected


def test_an_error_reaches_the_caller(torch_threads):
    torch_threads(2)

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        threads.run([lambda: None, fail])


def test_tasks_inside_of_tasks_wait_for_no_thread(torch_threads):
    torch_threads(2)
    many = 4 * (os.cpu_count() or 1)
    inner = [lambda: threads.run([lambda: 1, lambda: 2]), lambda: [3]]
    assert threads.run([lambda: threads.run(inner)] * many) == [[[1, 2], [3]]] * many


def _child(connection) -> None:
    torch.set_num_threads(2)
    connection.send(blobs(3))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_other_processes(torch_threads, method):
    torch_threads(2)
    expected = blobs(3)  # the pool is at work before the fork
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs,))
    process.start()
    assert ours.poll(120)
    assert ours.recv() == expected
    process.join(60)
    assert process.exitcode == 0


def test_without_torch():
    code = (
        "import sys, os; from gradwire.kernels import threads; assert 'torch' not in sys.modules; "
        "print(threads.num_threads())"
    )
    for told, expected in (("3", 3), ("nonsense", len(os.sched_getaffinity(0)))):
        environment = {**os.environ, "OMP_NUM_THREADS": told}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert int(done.stdout) == expected


def test_after_the_interpreter_began_to_end():
    code = (
        "import atexit, numpy as np, gradwire as gw\n"
        "client = gw.Client(gw.ef(gw.topk(0.01)), gw.Layout.flat(2_000_000))\n"
        "x = np.random.default_rng(0).standard_normal(2_000_000).astype(np.float32)\n"
        "atexit.register(lambda: print(len(client.compress(x))))\n"
        "client.compress(x)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_large_results_are_the_references(torch_threads):
    torch_threads(3)
    rng = np.random.default_rng(1)
    values = rng.standard_normal(D).astype(np.float32)
    chosen = ops.topk(values, 20_000)
    np.testing.assert_array_equal(chosen, reference.topk(values, 20_000))
    assert ops.gather(values, chosen).tobytes() == values[chosen].tobytes()
