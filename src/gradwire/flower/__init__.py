"""Flower: the same compressors over a real network.

The ClientApp gets ``CompressionMod`` among its mods, the ServerApp's strategy is wrapped in ``CompressedStrategy``, or
in ``AsynchronousStrategy`` where nobody is to be waited for.
Importing this package needs flwr, which importing gradwire does not.
"""

import gradwire.flower.installed  # noqa: F401  first of all: it refuses a flwr that is missing or too old
from gradwire.flower.asynchronous import AsynchronousStrategy
from gradwire.flower.mod import CompressionMod
from gradwire.flower.strategy import CompressedStrategy

__all__ = ["AsynchronousStrategy", "CompressedStrategy", "CompressionMod"]
