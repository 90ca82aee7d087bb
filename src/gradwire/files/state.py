"""A client's, server's or region's state in a file."""

from __future__ import annotations

from pathlib import Path

from gradwire.ends.client import Client
from gradwire.ends.region import Region
from gradwire.ends.server import Server
from gradwire.errors import ConfigError, StateError
from gradwire.files.store import read_state, write_state

__all__ = ["load_state", "save_state"]

_KINDS = {"client": Client, "server": Server, "region": Region}


def save_state(path: Path | str, end: Client | Server | Region) -> None:
    """Write the state of a client, server or region to a file.

    The file is a safetensors file with a checksum, no pickle; an old one is replaced only once the new one is whole.

    Args:
        path: the file; its folder must exist.
        end: whose ``state_dict()`` is written.

    Raises:
        ConfigError: on anything but a client, server or region; where something else than a file is at the path.
        OSError: when it cannot be written, naming the file; the old one is left then.

    Example:
        >>> import tempfile, numpy as np, gradwire as gw
        >>> from pathlib import Path
        >>> client, twin = (gw.Client(gw.ef(gw.topk(0.5)), gw.Layout.flat(4)) for _ in range(2))
        >>> blob = client.compress(np.array([4, 3, 2, 1], np.float32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     gw.save_state(Path(folder) / "client.state", client)
        ...     gw.load_state(Path(folder) / "client.state", twin)
        >>> twin.state_dict()["residual"].tolist()
        [0.0, 0.0, 2.0, 1.0]
    """
    write_state(Path(path), {"end": _kind_of(end), "state": end.state_dict()})


def load_state(path: Path | str, end: Client | Server | Region) -> None:
    """Continue where ``save_state`` was called.

    Args:
        path: the file.
        end: of the same kind, spec and layout as the one that was saved; takes over what it was.

    Raises:
        ConfigError: on anything but a client, server or region.
        StateError: when the file is missing, damaged or of something else, naming it; nothing is changed then.

    Example:
        >>> import gradwire as gw
        >>> try:
        ...     gw.load_state("nothing.state", gw.Client(gw.topk(0.5), gw.Layout.flat(4)))
        ... except gw.StateError as error:
        ...     print(error)
        nothing.state: cannot be read: No such file or directory
    """
    kind, found = _kind_of(end), read_state(Path(path))
    if set(found) != {"end", "state"}:
        raise StateError(f"{path}: is no state of a client, server or region")
    if found["end"] != kind:
        raise StateError(f"{path}: is the state of a {found['end']!r}, expected one of a {kind!r}")
    try:
        end.load_state_dict(found["state"])
    except StateError as error:
        raise StateError(f"{path}: {error}") from error


def _kind_of(end: object) -> str:
    kind = next((name for name, of in _KINDS.items() if isinstance(end, of)), None)
    if kind is None:
        raise ConfigError(f"a state is that of a Client, Server or Region, got {type(end).__name__}")
    return kind
