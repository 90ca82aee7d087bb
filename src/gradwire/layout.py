"""Layout: a model's named tensors <-> one flat float32 vector."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.containers import Container, name_of, named_arrays
from gradwire.errors import ConfigError, UpdateError, nearest
from gradwire.tensors import FLOATS, byte_order_of, cast, check_tensor, is_torch, unreadable

__all__ = ["Layout", "TensorSpec", "as_update", "check_finite"]

# torch, MXNet, TensorFlow and Keras name the statistics themselves, with a number behind in some; Flax the collection
_STATISTIC = re.compile(
    r"(^|[./_])((running|moving)_(mean|var|variance)|num_batches_tracked)(:\d+)?$|(^|[./])batch_stats[./]"
)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a layout.

    Attributes:
        name: the key it has in the model.
        shape: its dimensions; ``()`` is a scalar.
        dtype: ``float16``, ``bfloat16``, ``float32`` or ``float64``, restored by ``unflatten``.
        offset: where it starts in the flat vector, in elements.
        buffer: whether it is a running statistic, which is never sparsified or quantized.
        byte_order: ``<`` or ``>`` where it is not the machine's, else ``=``; restored by ``unflatten`` with NumPy.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    buffer: bool = False
    byte_order: str = "="

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """Offset one past its last element."""
        return self.offset + self.num_elements


@dataclass(frozen=True)
class Layout:
    """The names, shapes, dtypes and offsets that turn a model into a flat vector and back.

    Parameters come first, in the order given; running statistics (``buffers="dense"``) come last, so
    that a sparsifier works on the leading ``num_parameters`` elements and the rest travels whole.

    Attributes:
        tensors: the tensors in flat order.
        skipped: names that do not travel in the vector (integers, and buffers when skipped).
        container: how the arrays were held, where that was no plain dict of names; ``unflatten`` gives such a one.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> arrays = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)}
        >>> layout = gw.Layout.from_arrays(arrays)
        >>> layout.d, layout.flatten(arrays).shape
        (9, (9,))
        >>> sorted(layout.unflatten(layout.flatten(arrays)))
        ['b', 'w']
    """

    tensors: tuple[TensorSpec, ...]
    skipped: tuple[str, ...] = ()
    container: Container | None = None

    @classmethod
    def from_arrays(
        cls,
        arrays: Any,
        buffers: str = "dense",
        statistics: str | Iterable[Any] | Callable[[str], bool] | None = None,
    ) -> Layout:
        """Describe a model given as NumPy arrays or torch tensors, or both.

        Args:
            arrays: a dict name -> array, for instance ``model.state_dict()``; the module itself, which stands for its
                state dict; ``model.named_parameters()``; a list or tuple of arrays, named by their numbers; nested
                dicts and lists, whose names are joined by ``/``. Keys may be text, integers or tuples of them. Float
                tensors enter the flat vector; integers are remembered as skipped and stay the host's to send as they
                are.
            buffers: ``"dense"`` puts running statistics last, always sent whole; ``"skip"`` leaves them out.
            statistics: which tensors are running statistics beside those named ``running_*``, ``moving_*`` or
                ``num_batches_tracked`` and what is in ``batch_stats``: names, or patterns such as ``"ema/*"``. A
                function name -> bool decides of all, whatever they are called.

        Returns:
            The layout.

        Raises:
            ConfigError: on an entry that is no array of floats or integers, naming it; a key that gives no name, or
                two of the same; ``statistics`` that match nothing; an unknown ``buffers``.

        Example:
            >>> import numpy as np, gradwire as gw
            >>> arrays = {"scale": np.ones(2, np.float32), "ema": {"scale": np.ones(2, np.float32)}}
            >>> layout = gw.Layout.from_arrays(arrays, statistics="ema/*")
            >>> [(t.name, t.buffer) for t in layout.tensors]
            [('scale', False), ('ema/scale', True)]
        """
        if buffers not in ("dense", "skip"):
            raise ConfigError(
                f"buffers must be 'dense' or 'skip', got {buffers!r}{nearest(str(buffers), ('dense', 'skip'))}"
            )
        named, container = named_arrays(arrays, ConfigError)
        is_statistic = _statistics(statistics, tuple(named))
        found: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
        skipped: list[str] = []
        for name, array in named.items():
            dtype = check_tensor(name, array, ConfigError)
            buffer = is_statistic(name)
            if dtype not in FLOATS or (buffer and buffers == "skip"):
                skipped.append(name)
            else:
                found[buffer].append((name, dtype))
        tensors: list[TensorSpec] = []
        offset = 0
        for buffer, group in found.items():
            for name, dtype in group:
                shape = tuple(map(int, named[name].shape))
                tensors.append(TensorSpec(name, shape, dtype, offset, buffer, byte_order_of(named[name])))
                offset = tensors[-1].stop
        return cls(tuple(tensors), tuple(skipped), None if container.is_plain else container)

    @classmethod
    def flat(cls, d: int) -> Layout:
        """Describe one nameless vector.

        Args:
            d: number of elements, 0 or more.

        Returns:
            A layout of a single tensor of shape ``(d,)``.
        """
        if isinstance(d, bool) or not isinstance(d, (int, np.integer)) or d < 0:
            raise ConfigError(f"d must be an integer of 0 or more, got {d!r}")
        return cls((TensorSpec("", (int(d),), "float32", 0),))

    @cached_property
    def d(self) -> int:
        """Number of elements of the flat vector."""
        return self.tensors[-1].stop if self.tensors else 0

    @cached_property
    def num_parameters(self) -> int:
        """Number of leading elements that are parameters; the rest are running statistics."""
        return next((t.offset for t in self.tensors if t.buffer), self.d)

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Where one parameter tensor ends and the next begins: offsets inside (0, num_parameters), increasing."""
        return tuple(sorted({t.stop for t in self.tensors if 0 < t.stop < self.num_parameters}))

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """How many columns each stretch between the cuts has: a tensor's elements a row, a vector being one row."""
        tensors = [t for t in self.tensors if t.num_elements and not t.buffer]
        return tuple(t.num_elements // t.shape[0] if len(t.shape) > 1 else t.num_elements for t in tensors)

    @cached_property
    def digest(self) -> bytes:
        """Four bytes that tell layouts apart: SHA-256 of the names, shapes and buffer marks, in order."""
        text = json.dumps([[t.name, list(t.shape), t.buffer] for t in self.tensors], separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()[:4]

    def difference(self, other: Layout) -> str | None:
        """Say what first tells this layout from another, for instance a client's from the server's.

        Payloads and states of one fit the other where there is no difference. Dtypes, byte order and containers may
        differ: the flat vectors are the same.

        Args:
            other: the other end's layout.

        Returns:
            What differs, this layout being "here" and the other "there"; None where nothing does.

        Example:
            >>> import numpy as np, gradwire as gw
            >>> here, there = (gw.Layout.from_arrays({n: np.ones(2)}) for n in ("module.w", "w"))
            >>> here.difference(there)
            "names begin with 'module.' here and not there: the first is 'module.w' here and 'w' there"
        """
        here, there = ({t.name: t for t in layout.tensors} for layout in (self, other))
        both = [(t, there[name]) for name, t in here.items() if name in there]
        for a, b in both:
            if a.buffer != b.buffer:
                kinds = (
                    "a running statistic here and a parameter there",
                    "a parameter here and a running statistic there",
                )
                return f"tensor {a.name!r} is {kinds[b.buffer]}"
        if list(here) != list(there):
            return _other_names(list(here), list(there))
        return next(
            (f"tensor {a.name!r} has shape {a.shape} here and {b.shape} there" for a, b in both if a.shape != b.shape),
            None,
        )

    def mismatch(self, digest: str, d: int | None = None) -> str:
        """Say that a blob or state is of another layout, where that is all there is of the other one.

        Args:
            digest: the other layout's ``digest``, in hexadecimal.
            d: its length, where it is known.

        Returns:
            The end of a sentence, for an error.
        """
        tensors = "other names, shapes, order or running statistics of its tensors"
        if d is not None:
            tensors = f"the same d = {d}, but {tensors}" if d == self.d else f"d = {d}, expected d = {self.d}"
        return (
            f"is of another layout: {tensors} ({digest}, expected {self.digest.hex()}); "
            "client.layout.difference(server.layout) says where"
        )

    def place(self, index: int) -> str:
        """Say in which tensor an element of the flat vector lies, and where in it.

        Args:
            index: in [0, d).

        Returns:
            Text such as ``tensor 'conv.weight' at [0, 2]``; empty for a nameless vector.

        Example:
            >>> import numpy as np, gradwire as gw
            >>> gw.Layout.from_arrays({"b": np.ones(3), "w": np.ones((2, 3))}).place(5)
            "tensor 'w' at [0, 2]"
        """
        t = self.tensors[bisect_right([t.stop for t in self.tensors], index)]
        if not t.name:
            return ""
        inside = [int(i) for i in np.unravel_index(index - t.offset, t.shape)] if t.shape else ""
        return f"tensor {t.name!r}" + (f" at {inside}" if t.shape else "")

    def flatten(self, arrays: Any) -> Any:
        """Lay arrays out as one vector.

        Args:
            arrays: every tensor of the layout by name, in any container that ``from_arrays`` takes; names the layout
                skipped may be present and are ignored. Nothing is modified.

        Returns:
            (d,) float32, newly made; where there are torch tensors, one on the device of the first, else NumPy.

        Raises:
            UpdateError: on a missing or unknown name, a wrong shape, what is no array of real numbers, NaN or Inf,
                naming the tensor.
        """
        named, _ = named_arrays(arrays, UpdateError)
        known, skipped = {t.name for t in self.tensors}, set(self.skipped)
        for name in named:
            if name not in known and name not in skipped:
                raise UpdateError(f"tensor {name!r} is not in the layout{nearest(name, known)}")
        for t in self.tensors:
            if t.name not in named:
                raise UpdateError(f"tensor {t.name!r} is missing, expected shape {t.shape}")
            check_tensor(t.name, named[t.name], UpdateError)
            if (why := unreadable(named[t.name])) is not None:
                raise UpdateError(f"tensor {t.name!r} {why}")
            if tuple(named[t.name].shape) != t.shape:
                raise UpdateError(f"tensor {t.name!r}: shape must be {t.shape}, got {tuple(named[t.name].shape)}")
        device = next((named[t.name].device for t in self.tensors if is_torch(named[t.name])), None)
        if device is None:
            flat = np.empty(self.d, np.float32)
            with np.errstate(over="ignore"):  # what is infinite then is found below
                for t in self.tensors:
                    flat[t.offset : t.stop] = np.asarray(named[t.name]).reshape(-1)
            check_finite(flat, "what is flattened", self)
            return flat
        torch = sys.modules["torch"]
        out = torch.empty(self.d, dtype=torch.float32, device=device)
        for t in self.tensors:
            array = named[t.name]
            piece = array.detach() if is_torch(array) else torch.from_numpy(np.array(array, np.float32))
            out[t.offset : t.stop] = piece.reshape(-1)
        if device.type == "cpu" or not bool(torch.isfinite(out).all()):
            check_finite(out.cpu().numpy(), "what is flattened", self)
        return out

    def unflatten(self, update: Any) -> Any:
        """Cut a vector back into arrays of the layout's shapes, dtypes and byte order.

        Args:
            update: (d,) float32, NumPy or torch; not modified.

        Returns:
            Name -> array of the kind given, or a container like the one the layout was made of, with None in lists
            and tuples for what was skipped. float32 arrays are views of ``update``. Finite numbers beyond what
            float16 or bfloat16 hold become the largest there is, as ``fp16()`` sends them. NumPy has no bfloat16: such
            tensors come back as float32 there.

        Raises:
            UpdateError: on a wrong shape or dtype.
        """
        update = update if is_torch(update) else np.asarray(update)
        if not (update.is_floating_point() if is_torch(update) else update.dtype.kind == "f"):
            raise UpdateError(f"update must be a float vector, got {update.dtype}")
        if tuple(update.shape) != (self.d,):
            raise UpdateError(f"update must have shape ({self.d},), got {tuple(update.shape)}")
        arrays = {t.name: cast(update[t.offset : t.stop].reshape(t.shape), t.dtype, t.byte_order) for t in self.tensors}
        return arrays if self.container is None else self.container.hold(arrays)


def _other_names(here: list[str], there: list[str]) -> str:
    """Say how two different lists of names differ first."""
    if set(here) == set(there):
        number, (a, b) = next((i, pair) for i, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1])
        return f"tensors are in another order: number {number} is {a!r} here and {b!r} there"
    if here and there:
        first = f"the first is {here[0]!r} here and {there[0]!r} there"
        longer, shorter, where = (here, there, "here and not there")
        if len(here[0]) < len(there[0]):
            longer, shorter, where = (there, here, "there and not here")
        prefix = longer[0].removesuffix(shorter[0])
        if shorter[0] and longer == [prefix + name for name in shorter]:
            return f"names begin with {prefix!r} {where}: {first}"
    only_here = next((name for name in here if name not in set(there)), None)
    only_there = next((name for name in there if name not in set(here)), None)
    if only_here is None:
        return f"tensor {only_there!r} is only there"
    return f"tensor {only_here!r} is only here" + ("" if only_there is None else f", {only_there!r} only there")


def _statistics(chosen: Any, names: tuple[str, ...]) -> Callable[[str], bool]:
    """Read ``from_arrays``'s argument: what says of each name whether it is a running statistic."""
    if callable(chosen):
        return lambda name: bool(chosen(name))
    matched: set[str] = set()
    if not isinstance(chosen, (str, Iterable, type(None))):
        raise ConfigError(f"statistics must be names, patterns or a function name -> bool, got {chosen!r}")
    for pattern in [chosen] if isinstance(chosen, str) else chosen or ():
        if (text := name_of(pattern)) is None:
            raise ConfigError(f"statistics must be names, patterns or a function name -> bool, got {pattern!r}")
        found = {name for name in names if name == text or fnmatchcase(name, text)}
        if not found:
            raise ConfigError(f"statistics: no tensor is named {text!r}{nearest(text, names)}")
        matched |= found
    return lambda name: name in matched or _STATISTIC.search(name) is not None


def as_update(
    update: Any, d: int, check: bool = True, what: str = "update", layout: Layout | None = None
) -> NDArray[np.float32]:
    """Check an update and give it as NumPy float32, without a copy where that is possible.

    Args:
        update: (d,) float16, bfloat16, float32 or float64; NumPy array or torch tensor; not modified.
        d: the expected length.
        check: whether to look for NaN and Inf.
        what: what to call it in errors.
        layout: where it is known, errors name the tensor.

    Returns:
        (d,) float32 C-contiguous; shares memory with a float32 input on the CPU.

    Raises:
        UpdateError: on a wrong shape or dtype, NaN or Inf.
    """
    if is_torch(update):
        torch = sys.modules["torch"]
        flat = update.detach()
        if (why := unreadable(flat)) is not None:
            raise UpdateError(f"{what} {why}")
        if not flat.is_floating_point():
            raise UpdateError(f"{what} must be a float vector, got {flat.dtype}")
        array: NDArray[Any] = flat.to(device="cpu", dtype=torch.float32).numpy()
    else:
        array = np.asarray(update)
        if array.dtype.kind != "f":
            raise UpdateError(f"{what} must be a float vector, got {array.dtype}")
    if array.shape != (d,):
        raise UpdateError(f"{what} must have shape ({d},), got {array.shape}")
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, order="C")
    if check:
        check_finite(array, what, layout)
    return array


def check_finite(array: NDArray[np.float32], what: str, layout: Layout | None = None) -> None:
    """Raise UpdateError naming the first NaN or Inf in ``array``, if there is one.

    Args:
        array: (n,) float32.
        what: what to call it.
        layout: of which ``array`` holds the elements, or the leading ones: the tensor is then named.

    Raises:
        UpdateError: on NaN or Inf.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.dot(array, array))
    if math.isfinite(square):  # else some may just be large: look at each
        return
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        place = "" if layout is None else layout.place(int(bad[0]))
        raise UpdateError(
            f"{what} must be finite, got {array[bad[0]]} at index {bad[0]}{place and f', in {place}'} "
            f"({bad.size} such entries of {array.size})"
        )
