"""Flower: the same compressors over a real network.

The ClientApp gets ``CompressionMod`` among its mods, the ServerApp's strategy is wrapped in ``CompressedStrategy``.
Importing this package needs flwr, which importing gradwire does not.
"""

from gradwire.flower.installed import check_flower
from gradwire.flower.mod import CompressionMod
from gradwire.flower.strategy import CompressedStrategy

__all__ = ["CompressedStrategy", "CompressionMod", "check_flower"]
