"""SCAFFOLD's control variates on a road of their own: a second conversation beside that of the updates."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradwire.checks import check_integer
from gradwire.compressors.compressor import Compressor, Vector, decompress
from gradwire.compressors.feedback import has_feedback, has_momentum
from gradwire.ends.client import Client
from gradwire.ends.server import Server
from gradwire.errors import ConfigError
from gradwire.federated.algorithms.algorithm import check_positive
from gradwire.layout import Layout, as_update, check_finite
from gradwire.rng import Key
from gradwire.saved import check_memory, from_saved, reading_state, to_saved
from gradwire.wire import Opened

__all__ = ["Controls", "control_correction", "control_update"]


class Controls:
    """The server's control variate c, and how the clients' changes reach it: c <- c + (1 / N) sum of c_i+ - c_i.

    Args:
        compressor: what the changes travel with; with ``ef`` nothing of them is lost, so that c stays the mean of the
            c_i but for what is still in the residuals.
        downlink: what the change of c travels with.
        layout: the model's layout.
        seed: seed of the run.
        num_clients: N, the number of all clients.
        num_rounds: rounds of the whole run.

    Attributes:
        value: (d,) float32, c.

    Source: Karimireddy et al. 2019 (arXiv 1910.06378), Algorithm 1, lines 16-17.
    Deviations: c_i+ - c_i and the change of c are compressed.
    """

    def __init__(
        self, compressor: Compressor, downlink: Compressor, layout: Layout, seed: int, num_clients: int, num_rounds: int
    ) -> None:
        if compressor.mirrored:
            raise ConfigError(f"control variates cannot travel as steps of a mirror, got {compressor}: set control")
        if has_momentum(compressor):
            raise ConfigError(f"control variates cannot travel with momentum, got {compressor}: set control")
        self._compressor = compressor
        self._layout = layout
        self._seed = int(Key(seed, purpose="controls").words(1)[0])
        self._num_clients = num_clients
        self._num_rounds = num_rounds
        self._received = 0
        self.server = Server(compressor, layout, self._seed, downlink, self._share, num_clients)
        self.value = np.zeros(layout.d, np.float32)

    def make_client(self, client_id: int) -> Client:
        """Make one client's end."""
        return Client(self._compressor, self._layout, client_id, self._seed, self._num_rounds)

    @property
    def keeps_what_is_lost(self) -> bool:
        """Whether a change that is not sent, or lost, is sent later: whether there is error feedback."""
        return has_feedback(self._compressor)

    def receive(self, opened: Opened, client_id: int) -> Vector:
        """Take one client's c_i+ - c_i, and return what arrived of it: (d,) float32."""
        self.server.receive(opened, client_id)
        self._received += 1
        return decompress(opened.payload, self.server.reference_of(opened.payload))

    def close_round(self) -> bytes:
        """Move c, and return what tells the clients."""
        result = self.server.close_round()
        self._received = 0
        self.value += result.applied
        return result.blob

    def _share(self, mean: Vector) -> Vector:
        """The mean over those that sent, as a sum over all: |S| / N times it."""
        return mean * np.float32(self._received / self._num_clients)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of c and of the server's state, between rounds."""
        return to_saved({"value": self.value.copy(), "server": self.server.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        state = from_saved(state)
        with reading_state():
            value = np.array(state["value"], np.float32)
            check_memory({"value": value}, {"value": self.value}, self._layout.d)
        self.server.load_state_dict(state["server"])
        self.value = value


def control_correction(server_control: Vector, client_control: Vector) -> Vector:
    """Return what SCAFFOLD adds to each local gradient: c - c_i, so that y <- y - eta_l (g(y) - c_i + c).

    Args:
        server_control: (d,) float32, c; not modified.
        client_control: (d,) float32, c_i, or (num_clients, d) for many clients; not modified.

    Returns:
        float32 of ``client_control``'s shape; what ``Trainer.local_updates`` takes as ``corrections``.

    Example:
        >>> import numpy as np
        >>> from gradwire.federated.algorithms.controls import control_correction
        >>> control_correction(np.float32([1, 2]), np.float32([[0, 0], [1, 3]])).tolist()
        [[1.0, 2.0], [0.0, -1.0]]

    Source: Karimireddy et al. 2019 (arXiv 1910.06378), Algorithm 1, line 10; Eq. (3).
    Deviations: none.
    """
    correction: Vector = server_control - client_control
    return correction


def control_update(
    layout: Layout, server_control: Vector, update: Vector, local_steps: int, learning_rate: float
) -> Vector:
    """Return how a SCAFFOLD client's control variate changes: c_i+ - c_i = -c - (y - x) / (K eta_l).

    It is the mean of the gradients at the K local steps, less c_i: K of y <- y - eta_l (g - c_i + c) give
    y - x = -K eta_l (mean g - c_i + c).

    Args:
        layout: the model's layout.
        server_control: (d,) float32, the c the client trained with; not modified.
        update: (d,) float32, y - x, before compression; not modified.
        local_steps: K, the number of steps it took, 1 or more.
        learning_rate: eta_l, the same in all of them, > 0.

    Returns:
        (d,) float32; zeros where running statistics are, which have no gradient.

    Raises:
        ConfigError: on a number of steps or learning rate outside these.
        UpdateError: on vectors of another shape, or a result that is not finite.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.federated.algorithms.controls import control_update
        >>> control_update(gw.Layout.flat(2), np.float32([1, 0]), np.float32([-2, 1]), 4, 0.5).tolist()
        [0.0, -0.5]

    Source: Karimireddy et al. 2019 (arXiv 1910.06378), Algorithm 1, line 12, option II, and line 13.
    Deviations: none.
    """
    scale = check_integer("local_steps", local_steps, 1) * check_positive("learning_rate", learning_rate)
    update = as_update(update, layout.d, layout=layout)
    control = as_update(server_control, layout.d, what="server_control", layout=layout)
    n = layout.num_parameters
    change = np.zeros(layout.d, np.float32)
    with np.errstate(all="ignore"):  # what is not finite is found below
        np.multiply(update[:n], np.float32(-1 / scale), out=change[:n])
        change[:n] -= control[:n]
    check_finite(change, "scaffold's control update", layout)
    return change
