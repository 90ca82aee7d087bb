"""Files that lie.

.gw headers with sizes, shapes, names and dtypes that are not so, and safetensors headers that nest, overlap, overflow
or point elsewhere.

A .gw file must get a DecodeError, a safetensors file ConfigError, at once; and never is an output file left behind.
"""

import json
import struct
import tempfile
from pathlib import Path

import forge
from forge import container, escaped, floats, refused, varint

import gradwire as gw
from gradwire.files import aggregate_files, compress_file, decompress_file, inspect_file
from gradwire.files.safetensors_io import SafetensorsReader

SPEC = gw.topk(0.5)
ONE = container(2, bytes([forge.EVERY, forge.FLOAT32]) + floats(1.0, 2.0))
NOTHING = b"\0"


def gw_attacks(folder: Path) -> None:
    """Attack the readers of .gw files."""
    path, out = folder / "in.gw", folder / "out.safetensors"

    def attack(what: str, data: bytes) -> None:
        path.write_bytes(data)
        reads = (lambda: inspect_file(path), lambda: decompress_file(path, out), lambda: aggregate_files([path], out))
        for read in reads:
            refused(what, read, gw.DecodeError)
            if sorted(p.name for p in folder.iterdir()) != ["in.gw"]:
                escaped(f"{what}: files are left: {sorted(p.name for p in folder.iterdir())}")
                out.unlink(missing_ok=True)

    honest = forge.file([(b"w", 0, (2,), ONE)])
    for size in range(0, len(honest), 3):
        attack(f"the first {size} bytes", honest[:size])
    attack("bytes after the last tensor", honest + b"\0")
    attack("version 2", honest[:6] + b"\2" + honest[7:])
    attack("other magic", b"XX" + honest[2:])
    head = forge.file_header([(b"w", 0, (2,))])
    attack("header damaged", head[:-5] + b"\7" + head[-4:] + varint(len(ONE)) + ONE)
    for size in (len(ONE) + 1, 2**34, 2**40, 2**62, 2**63, 2**64 - 1):
        attack(f"a tensor of {size} bytes", head + varint(size) + ONE)
        attack(f"a header of {size} bytes", b"GWFILE\1" + varint(size) + head[8:])
    attack("a size of eleven bytes", head + b"\x80" * 10 + b"\1" + ONE)
    raw = forge.file_header([(b"i", 4, (2**44,))])
    attack("integers of 128 TB", raw + varint(2**47 + 4) + bytes(50))
    for shape in ((3,), (2**33,), (1,), ()):
        attack(f"shape {shape} of two elements", forge.file([(b"w", 0, shape, ONE)]))
    for shape in ((2**47,), (2**47, 2), (2**24, 2**24), (2**48,), (2**47,) * 64):
        blob = container(1, NOTHING) if len(shape) > 1 else container(min(shape[0], 2**64 - 1), NOTHING)
        attack(f"shape {str(shape)[:40]}, empty support", forge.file([(b"w", 0, shape, blob)]))
    attack("65 dimensions", forge.file([(b"w", 0, (1,) * 65, ONE)]))
    attack("dtype 13", forge.file([(b"w", 13, (2,), ONE)]))
    attack("dtype 254", forge.file([(b"w", 254, (2,), ONE)]))
    for name, size in ((b"F32", 8), (b"U8", 2), (b"F8_E4M3", 3), (b"F4", 2), (b"C64", 2**62)):
        attack(
            f"{name.decode()} by its name, {size} bytes",
            forge.file([(b"w", (name, size), (2,), forge.repaired(b"ab"))]),
        )
    attack("a new dtype of 2^62 bytes", forge.file([(b"w", (b"F3", 2**62), (2,), forge.repaired(b"ab"))]))
    attack("a new dtype of 2^63 bytes", forge.file([(b"w", (b"F3", 2**63), (2,), forge.repaired(b"ab"))]))
    attack("a dtype that is not UTF-8", forge.file([(b"w", (b"\xff", 2), (2,), forge.repaired(b"ab"))]))
    attack("metadata twice", forge.file([], metadata=[(b"a", b""), (b"a", b"")]))
    attack("metadata that is not UTF-8", forge.file([], metadata=[(b"a", b"\xff")]))
    attack("a million metadata in no bytes", forge.repaired(b"GWFILE\1" + varint(4) + b"\0" + varint(2**20)))
    attack("a name twice", forge.file([(b"w", 0, (2,), ONE), (b"w", 0, (2,), ONE)]))
    attack("a name that is not UTF-8", forge.file([(b"\xff\xfe", 0, (2,), ONE)]))
    attack("a spec that is not UTF-8", forge.file([(b"w", 0, (2,), ONE)], b"\xc0\x80"))
    attack("the name safetensors keeps for itself", forge.file([(b"__metadata__", 0, (2,), ONE)]))
    attack("raw data damaged", forge.file([(b"i", 11, (4,), b"abcd" + bytes(4))]))
    attack("raw data too short", forge.file([(b"i", 11, (5,), forge.repaired(b"abcd"))]))
    attack("no container", forge.file([(b"w", 0, (2,), b"nonsense nonsense")]))
    leaning = container(2, b"\1\0" + floats(1, 2), flags=forge.REFERENCE, reference=bytes(8))
    attack("a container that leans on a reference", forge.file([(b"w", 0, (2,), leaning)]))
    body = varint(0) + varint(0) + varint(2**20)
    attack("a million tensors in no bytes", forge.repaired(b"GWFILE\1" + varint(len(body)) + body))
    body = varint(2**40) + b"spec"
    attack("a spec of 2^40 bytes", forge.repaired(b"GWFILE\1" + varint(len(body)) + body))
    body = varint(0) + varint(0) + varint(0) + b"more"
    attack("a header with bytes left over", forge.repaired(b"GWFILE\1" + varint(len(body)) + body))


def safetensors_attacks(folder: Path) -> None:
    """Attack the reader of safetensors files."""
    path, out = folder / "in.safetensors", folder / "out.gw"

    def attack(what: str, header: object, data: bytes = bytes(48), size: int | None = None) -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)
        for read in (
            lambda: SafetensorsReader(path).__exit__(None, None, None),
            lambda: compress_file(path, out, SPEC),
        ):
            refused(what, read, gw.ConfigError)
            if out.exists():
                escaped(f"{what}: {out.name} is left")
                out.unlink()

    def tensor(shape: object = (4,), offsets: object = (0, 16), dtype: object = "F32") -> dict:
        return {"dtype": dtype, "shape": shape, "data_offsets": offsets}

    for size in (0, 1, 2**20, 2**40, 2**63, 2**64 - 1):
        attack(f"a header of {size} bytes", {"a": tensor()}, size=size)
    attack("nested lists", b"[" * 200_000)
    attack("nested objects", b'{"a":' * 200_000)
    attack("nested tensors", b'{"a":' * 2000 + b"0" + b"}" * 2000)
    attack("no JSON", b"\xff" * 50)
    for other in (b"[]", b"7", b"null", b'"text"', b'{"a":7}', b'{"a":{}}', b'{"a":{"dtype":"F32"}}'):
        attack(f"header {other!r}", other)
    attack("an infinite dimension", b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,16]}}')
    attack("a dimension that is NaN", b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}')
    attack("a dimension of 5000 digits",
           b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}')  # fmt: skip
    for shape in ((-4,), (-2, -2), (5,), (2**62, 4), (2**70,), (2.5,), "4", None, {"4": 4}, (True, 4), ("4",)):
        attack(f"shape {shape}", {"a": tensor(shape)})
    for offsets in ((16, 0), (-16, 0), (0, 2**63), (40, 56), (2**64, 2**64 + 16), (0,), (0, 8, 16), "ab", None):
        attack(f"offsets {offsets}", {"a": tensor(offsets=offsets)})
    for dtype in (None, 7, ["F32"], {}):
        attack(f"dtype {dtype}", {"a": tensor(dtype=dtype)})
    attack("a hole at the start", {"a": tensor(offsets=(16, 32))}, bytes(32))
    attack("a hole", {"a": tensor(), "b": tensor(offsets=(32, 48))})
    attack("bytes after the last tensor", {"a": tensor()}, bytes(17))
    attack("a name twice", b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
           b'"a":{"dtype":"F32","shape":[8],"data_offsets":[16,48]}}')  # fmt: skip
    attack("metadata that is no text", {"__metadata__": {"a": 1}, "b": tensor()}, bytes(16))
    attack("tensors that overlap", {"a": tensor(), "b": tensor(offsets=(8, 24))})
    attack("the same bytes twice", {"a": tensor(), "b": tensor()})
    attack("a name that is no Unicode", b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}')


def attacks() -> None:
    """Try each in a folder of its own."""
    for attack in (gw_attacks, safetensors_attacks):
        with tempfile.TemporaryDirectory() as folder:
            attack(Path(folder))


if __name__ == "__main__":
    forge.main(attacks)
