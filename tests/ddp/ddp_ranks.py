"""Processes that wait for something to do together: started once, since a start takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

TIMEOUT = 120.0  # seconds for one case on a busy machine


class Ranks:
    """Processes 0 to n - 1 of one gloo group, which also has a group of processes 0 and 1 in it."""

    def __init__(self, number: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(number)]
        self._pipes = [pipe for pipe, _ in pipes]
        store = f"file://{folder / 'store'}"
        self._processes = [
            context.Process(target=_serve, args=(rank, number, store, pipe), daemon=True)
            for rank, (_, pipe) in enumerate(pipes)
        ]
        for process, (_, theirs) in zip(self._processes, pipes, strict=True):
            process.start()
            theirs.close()  # so that it ends when this end is closed

    def run(self, case: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function in each process and return what it gives there; None where its group is without it."""
        for pipe in self._pipes:
            pipe.send((case, args))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(TIMEOUT), f"rank {rank} says nothing"
            answers.append(pipe.recv())
        failed = "\n".join(f"rank {rank}: {text}" for rank, (good, text) in enumerate(answers) if not good)
        assert not failed, failed
        return [answer for _, answer in answers]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()


def _serve(rank: int, number: int, store: str, pipe: Any) -> None:
    import ddp_cases
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=number, timeout=timedelta(seconds=60))
    ddp_cases.PAIR = dist.new_group([0, 1])
    warnings.simplefilter("error")
    while True:
        try:
            case, args = pipe.recv()
        except EOFError:
            os._exit(0)  # without all that an interpreter does at its end
        try:
            pipe.send((True, case(*args)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
