"""The command ``gradwire``: every subcommand of it, thin over the library.

Exit codes: 0 done; 1 the run failed; 2 bad input or a damaged file; 130 interrupted, the partial result is valid.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradwire.errors import ConfigError, DecodeError, GradwireError, ProtocolError, UpdateError, visible

if TYPE_CHECKING:
    from gradwire.federated.data.task import Task
    from gradwire.federated.folder import RunFolder

__all__ = ["app", "main"]

app = typer.Typer(
    name="gradwire",
    help="Federated and distributed training, cheap on the network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_RUN_FAILED = (UpdateError, ProtocolError)
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EIO, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])}


def main() -> None:
    """Run the command and exit with its code; every error is one line on stderr."""
    _replace_odd_characters()
    try:
        with _ending_as_interrupted():
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except _RUN_FAILED as error:
        _fail(str(error), 1)
    except GradwireError as error:
        _fail(str(error), 2)
    except OSError as error:
        file = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{file}{error.strerror or error}", 1 if error.errno in _NO_ROOM else 2)
    except MemoryError as error:
        _fail(f"not enough memory: {error}".removesuffix(": "), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        # the command-line parser's own errors carry a code and know how to say themselves
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        _fail(message(), 2)
    sys.exit(code if isinstance(code, int) else 0)


def _replace_odd_characters() -> None:
    """Let no output's encoding end a command: what it does not have is replaced."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def _ending_as_interrupted() -> Iterator[None]:
    """Take a request to end as Ctrl-C, so that temporary files go; one that is ignored (nohup) stays so."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _fail(message: str, code: int) -> None:
    print(f"gradwire: {visible(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from gradwire import __version__

        print(f"gradwire {__version__}")
        raise typer.Exit


@app.command()
def run(
    experiment: Annotated[Path | None, typer.Argument(help="A TOML file of settings; options override it.")] = None,
    data: Annotated[str | None, typer.Option(help="A task: digits (default), mnist, cifar10, shakespeare.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Your own task, package.module:function: see docs/tutorial.md.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data files (else the variable GRADWIRE_DATA).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="mlp, cnn, small_cnn, resnet18 or char_transformer.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="A spec such as 'ef(topk(0.01))'; may be repeated.")] = None,
    algorithm: Annotated[
        list[str] | None, typer.Option(help="fedavg() (default), scaffold(), fedasync() ...; may be repeated.")
    ] = None,
    links: Annotated[
        list[str] | None, typer.Option(help="ideal() (default), 'mix(fibre=1, lte=2)' ...; may be repeated.")
    ] = None,
    clients: Annotated[int | None, typer.Option(help="Number of clients (default 10).")] = None,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds (default 100).")] = None,
    local_steps: Annotated[int | None, typer.Option(help="Local SGD steps in a round (default 5).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples to a local step (default 32).")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Step size of local SGD.")] = None,
    partition: Annotated[str | None, typer.Option(help="iid (default), dirichlet:A, shards:S or natural.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed (default 0); may be repeated: each method runs with each.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="A torch device (default cpu).")] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Rounds between evaluations.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results (default runs/<time>).")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
) -> int:
    """Train with several compression methods and compare accuracy and bytes."""
    given = {
        "data": data,
        "data_dir": None if data_dir is None else str(data_dir),
        "model": model,
        "methods": method or None,
        "algorithms": algorithm or None,
        "links": links or None,
        "clients": clients,
        "rounds": rounds,
        "local_steps": local_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "partition": partition,
        "seeds": seed or None,
        "device": device,
        "evaluate_every": evaluate_every,
    }
    given = {name: value for name, value in given.items() if value is not None}
    from gradwire.federated.experiment import Experiment, read_settings
    from gradwire.federated.folder import RunFolder
    from gradwire.federated.paths import with_whole_paths
    from gradwire.report.page import import_report

    import_report()
    with Interruption() as interruption:
        if resume is not None:
            if given or experiment is not None or out is not None:
                extra = "an experiment file" if experiment else "--out" if out else _option(next(iter(given)))
                raise ConfigError(f"--resume takes its settings from the folder, got {extra} as well")
            folder = RunFolder.open(resume)
            _check_own(folder.experiment.data, task)
            return _run(folder, None, interruption)
        if task is not None:
            if data is not None:
                raise ConfigError("--task and --data both say what is trained: give one of them")
            given["data"] = task
        settings = read_settings(experiment) if experiment else {}
        here = with_whole_paths(_with_data_dir({**settings, **given}), Path.cwd())
        checked = Experiment.build(here, str(experiment) if experiment else "options")
        _check_own(checked.data, task)
        from gradwire.federated.runs import prepare  # torch, which a misspelt method need not wait for

        prepared = prepare(checked)
        folder = RunFolder.create(out or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S"), checked)
        return _run(folder, prepared, interruption)


def _check_own(data: str, task: str | None) -> None:
    """Run the code of a task of one's own only where it was asked for by name: settings may come from anybody."""
    if ":" in data and task is None:
        raise ConfigError(f"the experiment trains a task of its own: pass --task {data} to run that code")
    if task is not None and (":" not in task or task != data):
        wanted = data if ":" in data else "package.module:function"
        raise ConfigError(f"--task must be {wanted}, got {task}")
    if task is not None and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _option(name: str) -> str:
    return "--" + {"methods": "method", "seeds": "seed", "algorithms": "algorithm"}.get(name, name).replace("_", "-")


def _with_data_dir(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the data folder of the environment, where none is given and one is needed."""
    from gradwire.federated.data.tasks import TASKS
    from gradwire.federated.experiment import Experiment

    found = os.environ.get("GRADWIRE_DATA")
    row = TASKS.get(str(settings.get("data", Experiment.model_fields["data"].default)))
    if not found or settings.get("data_dir") is not None or row is None or row.files is None:
        return settings
    return {**settings, "data_dir": found}


class Interruption:
    """Turns the first Ctrl-C (or a request to terminate) into a flag, the second into an end at once.

    Attributes:
        requested: whether there was a first.
        say: called then, with what to tell the user.
    """

    def __init__(self) -> None:
        self.requested = False
        self.say: Callable[[str], None] = lambda text: None

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.say("stopping after this round; press Ctrl-C again to stop at once")


def _run(folder: RunFolder, task: Task | None, interruption: Interruption) -> int:
    from gradwire.federated.runs import run_experiment
    from gradwire.progress import RunDisplay
    from gradwire.report import build_report

    with RunDisplay(folder.path) as display:
        interruption.say = display.say
        try:
            complete = run_experiment(folder, display.started, display.progressed, lambda: interruption.requested, task)
        except (*_RUN_FAILED, MemoryError, OSError) as error:
            with suppress(ConfigError):  # a full disk holds no report either
                build_report(folder.path)
            if isinstance(error, OSError):
                _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
            raise
    display.finish(build_report(folder.path), complete)
    return 0 if complete else 130


@app.command()
def methods() -> None:
    """List every stage a spec can use."""
    from gradwire import progress

    progress.print_methods()


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A .gw file, or a file holding one payload.", metavar="IN.gw")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what a .gw file or a payload holds and what each piece of it costs."""
    from gradwire import progress
    from gradwire.files.archive import inspect_file
    from gradwire.files.gwfile import MAGIC
    from gradwire.files.paths import naming_file, open_input
    from gradwire.wire import inspect as inspect_blob

    with open_input(file) as opened, naming_file(file):
        start = opened.read(len(MAGIC))
        # what is neither is told from its start: it may be larger than memory
        blob = b"" if start == MAGIC or not start.startswith(b"GW") else start + opened.read()
    try:
        found = inspect_blob(blob) if blob else inspect_file(file)
    except DecodeError as error:
        raise error if str(file) in str(error) else type(error)(f"{file}: {error}") from None
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        progress.print_facts(found)


@app.command()
def compress(
    source: Annotated[
        Path,
        typer.Argument(help="The update: a safetensors file, or the index.json of shards.", metavar="IN.safetensors"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .gw file to write.", metavar="OUT.gw")],
    spec: Annotated[str, typer.Option(help="How, for instance 'topk(0.001) | uniform(8)'.")],
    residual: Annotated[
        Path | None, typer.Option(help="safetensors file of what was not sent: added first, then replaced.")
    ] = None,
    client: Annotated[
        int | None, typer.Option(help="The client's number: what is random follows from it (default: a new one).")
    ] = None,
    round: Annotated[
        int | None, typer.Option(help="The round (default: the one the residual remembers, else 0).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The run's seed, the same for all clients (default 0).")] = None,
) -> None:
    """Compress a safetensors update, tensor by tensor."""
    from gradwire import progress
    from gradwire.compressors.spec import parse
    from gradwire.files.archive import compress_file

    compressor = parse(spec)
    with _ending_cleanly(), progress.FileProgress(source) as bar:
        num_bytes = compress_file(
            source, output, compressor, residual, bar.advance, client=client, round=round, seed=seed
        )
    progress.print_compressed(bar.num_bytes, num_bytes, output)


@app.command()
def decompress(
    source: Annotated[Path, typer.Argument(help="A .gw file.", metavar="IN.gw")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.", metavar="OUT.safetensors")],
) -> None:
    """Turn a .gw file back into safetensors."""
    from gradwire import progress
    from gradwire.files.archive import decompress_file

    with _ending_cleanly(), progress.FileProgress(source) as bar:
        decompress_file(source, output, bar.advance)


@app.command()
def aggregate(
    sources: Annotated[list[Path], typer.Argument(help="One .gw file a client.", metavar="IN.gw...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.", metavar="OUT.safetensors")],
    weight: Annotated[list[float] | None, typer.Option(help="Weight of each file, in order; equal without.")] = None,
) -> None:
    """Average .gw files into one safetensors update."""
    from gradwire import progress
    from gradwire.files.averaging import aggregate_files

    with _ending_cleanly(), progress.FileProgress(sources[0]) as bar:
        differing = aggregate_files(sources, output, weight or None, bar.advance)
    progress.print_differing(differing, sources[0])


@contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Let SIGTERM, and a terminal that closes, end a command as Ctrl-C does: nothing is left behind."""
    found = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    numbers = [n for n in found if n is not None and signal.getsignal(n) is signal.SIG_DFL]  # what nohup said stands
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@app.command()
def bench(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    size: Annotated[
        int | None,
        typer.Option(
            min=10_000, help="Number of parameters (default: ResNet-50's); memory is about 60 times their float32."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to use (default: torch's setting).")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds that count.")] = None,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Instead, how cost grows to 40 times the size, and what threads gain.")
    ] = False,
) -> None:
    """Time kernels, codecs and aggregation against one addition and against others, in one process."""
    # before torch is loaded: its idle threads would else spin for a while on the cores ours want
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from gradwire import progress
    from gradwire.bench.run import run_bench, run_scaling

    with progress.BenchProgress() as bar:
        found = (run_scaling if scaling else run_bench)(size, threads, rounds, bar.advance)
    if as_json:
        print(json.dumps(found, indent=1))
    elif scaling:
        progress.print_scaling(found)
    else:
        progress.print_bench(found)


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="tcs, adaptopk or regtopk.")],
    scale: Annotated[str, typer.Option(help="smoke (a minute), cpu (two cores) or paper (one GPU).")] = "cpu",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data files (else the variable GRADWIRE_DATA).")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Units run at a time (default: one a core).")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after so long, to be gone on with later.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results (default runs/PAPER-SCALE); goes on where it was left.")
    ] = None,
) -> int:
    """Repeat a paper's experiments and put its figures beside ours."""
    from gradwire.progress import ReproductionDisplay
    from gradwire.report.page import import_report
    from gradwire.reproduce.run import reproduce as run_all

    import_report()
    folder = out or Path("runs") / f"{paper}-{scale}"
    end = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    with Interruption() as interruption, ReproductionDisplay() as display:
        interruption.say = display.say
        complete = run_all(
            paper,
            scale,
            folder,
            data_dir,
            workers or os.cpu_count() or 1,
            display.started,
            display.progressed,
            lambda: interruption.requested or time.monotonic() > end,
        )
    display.finish(folder / "report.html", complete)
    return 0 if complete else 130


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(help="A run's folder, or several to compare.", metavar="DIR...")],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write (default: DIR/report.html, or comparison.html here for several)."),
    ] = None,
) -> None:
    """Build (or rebuild) the page of a run or a reproduction, or one that compares several runs."""
    reproductions = [directory for directory in directories if (directory / "reproduction.json").is_file()]
    if reproductions:
        if len(directories) > 1 or out is not None:
            raise ConfigError(f"{reproductions[0]} is a reproduction, whose page stands alone: give it alone")
        from gradwire.reproduce.run import rebuild_report

        print(rebuild_report(reproductions[0]))
        return
    from gradwire.report import build_report

    print(build_report(*directories, out=out))
