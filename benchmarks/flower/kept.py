"""Runs that take long: each is kept when it is finished, and only what is left is run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.flower.net import end_all

FOLDER = Path("runs") / "flower"
Run = dict[str, Any]


def run_left(
    part: str, runs: Mapping[str, Callable[[], Run]], together: int, done: Callable[[list[Run]], None]
) -> None:
    """Run what is not kept yet.

    Args:
        part: of the benchmark; its runs are kept in ``runs/flower/PART``, which is moved away to run them anew.
        runs: name, fit for files -> what runs it.
        together: so many at a time.
        done: called with all that is kept, whenever one more is.

    Raises:
        ExceptionGroup: on what failed, when all others are done.
    """
    folder = FOLDER / part
    folder.mkdir(parents=True, exist_ok=True)

    def kept() -> list[Run]:
        paths = [folder / f"{name}.json" for name in runs]
        return [json.loads(path.read_text()) for path in paths if path.exists()]

    def run(name: str) -> Exception | None:
        try:
            found = runs[name]()
        except Exception as error:  # the others go on
            print(f"flower {part} {name}: {error}", flush=True)
            return error
        (folder / f"{name}.json").write_text(json.dumps(found, indent=1))
        print(f"flower {part} {name}: done", flush=True)
        done(kept())
        return None

    done(kept())
    left = [name for name in runs if not (folder / f"{name}.json").exists()]
    pool = ThreadPoolExecutor(together)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        errors = [error for error in pool.map(run, left) if error is not None]
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        end_all()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if errors:
        raise ExceptionGroup(f"runs of flower's {part} failed; those that did not are kept", errors)
