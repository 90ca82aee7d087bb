"""gradwire: model updates in the fewest bytes that train as well.

    import gradwire as gw

    compressor = gw.ef(gw.topk(0.01))
    client = gw.Client(compressor, layout)          # client.compress(update) -> bytes
    server = gw.Server(compressor, layout)          # server.receive(blob); server.close_round()

Importing this package loads neither torch nor plotting nor numba.
"""

from gradwire.aggregation.aggregator import Aggregator
from gradwire.compressors.coders import ans, auto, context, huffman, rle
from gradwire.compressors.compressor import Compressor, Round, State, accumulate, decompress
from gradwire.compressors.distortion import rd
from gradwire.compressors.dithering import dither
from gradwire.compressors.feedback import ef, ef21, momentum_correction
from gradwire.compressors.guarantee import Absolute, Contractive, Guarantee, Unbiased, Unknown
from gradwire.compressors.lowrank import powersgd
from gradwire.compressors.momentum import momentum
from gradwire.compressors.natural import natural
from gradwire.compressors.papers.adaptopk import adaptopk, adaptopk_online
from gradwire.compressors.papers.cyclic import cyclic
from gradwire.compressors.papers.leader import leader
from gradwire.compressors.papers.regtopk import regtopk
from gradwire.compressors.papers.sketch import sketch
from gradwire.compressors.papers.tcs import tcs
from gradwire.compressors.quantize import bf16, fixed, fp16, fractional, qsgd, sign, ternary, uniform
from gradwire.compressors.references import Reference
from gradwire.compressors.rules import by_tensor, warmup
from gradwire.compressors.sparsify import dense, randk, threshold, topk
from gradwire.compressors.spec import parse
from gradwire.ends.client import Client
from gradwire.ends.inbox import Clipped
from gradwire.ends.region import Forwarded, Region
from gradwire.ends.server import Result, Server
from gradwire.errors import (
    BackendUnavailable,
    BadChecksum,
    ConfigError,
    DecodeError,
    Duplicate,
    Forgotten,
    GradwireError,
    LimitExceeded,
    Malformed,
    ProtocolError,
    StaleReference,
    StateError,
    TooFewClients,
    Truncated,
    UnknownCodec,
    UnsupportedVersion,
    UpdateError,
)
from gradwire.files.state import load_state, save_state
from gradwire.layout import Layout
from gradwire.payload import Part, Payload
from gradwire.rng import Key
from gradwire.wire import Limits, decode, encode, inspect

__version__ = "0.1.0.dev0"

__all__ = [
    "Absolute",
    "Aggregator",
    "BackendUnavailable",
    "BadChecksum",
    "Client",
    "Clipped",
    "Compressor",
    "ConfigError",
    "Contractive",
    "DecodeError",
    "Duplicate",
    "Forgotten",
    "Forwarded",
    "GradwireError",
    "Guarantee",
    "Key",
    "Layout",
    "LimitExceeded",
    "Limits",
    "Malformed",
    "Part",
    "Payload",
    "ProtocolError",
    "Reference",
    "Region",
    "Result",
    "Round",
    "Server",
    "StaleReference",
    "State",
    "StateError",
    "TooFewClients",
    "Truncated",
    "Unbiased",
    "Unknown",
    "UnknownCodec",
    "UnsupportedVersion",
    "UpdateError",
    "__version__",
    "accumulate",
    "adaptopk",
    "adaptopk_online",
    "ans",
    "auto",
    "bf16",
    "by_tensor",
    "context",
    "cyclic",
    "decode",
    "decompress",
    "dense",
    "dither",
    "ef",
    "ef21",
    "encode",
    "fixed",
    "fp16",
    "fractional",
    "huffman",
    "inspect",
    "leader",
    "load_state",
    "momentum",
    "momentum_correction",
    "natural",
    "parse",
    "powersgd",
    "qsgd",
    "randk",
    "rd",
    "regtopk",
    "rle",
    "save_state",
    "sign",
    "sketch",
    "tcs",
    "ternary",
    "threshold",
    "topk",
    "uniform",
    "warmup",
]
