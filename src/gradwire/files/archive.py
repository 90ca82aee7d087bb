"""Files: a model update in safetensors <-> a .gw file, one tensor at a time.

Memory is bounded by the largest tensor, never by the file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gradwire.compressors.compressor import Compressor, Round, Vector, accumulate, decompress
from gradwire.compressors.feedback import ef
from gradwire.compressors.pipeline import Pipeline, Sparsifier, Stage
from gradwire.compressors.sparsify import topk
from gradwire.errors import ConfigError
from gradwire.files.dtypes import FLOATS, TensorInfo, from_float32, to_float32
from gradwire.files.gwfile import GwReader, Header, naming_damage, pack_raw
from gradwire.files.identity import Identity
from gradwire.files.paths import check_paths
from gradwire.files.safetensors_io import SafetensorsReader, SafetensorsWriter, open_output
from gradwire.files.selection import Candidates, find_border
from gradwire.files.shards import ShardedReader, open_update
from gradwire.layout import Layout, check_finite
from gradwire.rng import Key
from gradwire.wire import decode, encode, inspect
from gradwire.wire.reader import varint

__all__ = ["Progress", "compress_file", "decompress_file", "inspect_file"]

Progress = Callable[[str, int], None]


def compress_file(
    source: Path | str,
    target: Path | str,
    compressor: Compressor,
    residual: Path | str | None = None,
    progress: Progress | None = None,
    *,
    client: int | None = None,
    round: int | None = None,
    seed: int | None = None,
) -> int:
    """Compress a safetensors update into a .gw file.

    Float tensors (float32, float16, bfloat16, and float64 as float32) are compressed, others travel as they are, and
    so does ``__metadata__``. A model-wide ``topk`` selects over all float tensors of the file, exactly: the update and
    the residual are then read twice, and what may be among the selected is laid aside in a temporary file beside the
    target. Otherwise they are read once, and every stage works on each tensor apart.

    What is random follows from (seed, round, client) as in ``Client``: docs/files.md. Where no client is named, a
    number that nobody has is drawn for it: no two files draw alike then, and none can be made again.

    Args:
        source: the update, or the index.json of one in shards.
        target: the .gw file; appears only when it is whole.
        compressor: for instance ``gw.topk(0.001) | gw.uniform(8)``; ``ef(...)`` needs a residual file.
        residual: safetensors file of the residual: added to the update where it exists, and replaced by what was not
            sent once the .gw file is in its place. It remembers the client, the seed and the next round.
        progress: called with a tensor's name and how many source bytes were worked through.
        client: the client's number, 0 or more.
        round: the round the update is of; the one the residual remembers, or 0, when None.
        seed: the run's seed, the same for all clients; the one the residual remembers, or 0, when None.

    Returns:
        Bytes of the .gw file.

    Raises:
        ConfigError: on files, a spec or numbers that cannot be used, and where two of the files are one.
        UpdateError: on NaN or Inf, naming the tensor.
        OSError: on a full disk, naming the file. The target and the residual are as before in all of these cases.
    """
    source, target = Path(source), Path(target)
    residual = None if residual is None else Path(residual)
    stage, feedback = _stage(compressor, residual)
    outputs = [target, *([residual] if residual else [])]
    check_paths(outputs, [source])
    with ExitStack() as files:
        update = open_update(source)
        files.callback(update.close)
        check_paths(outputs, update.paths)
        floats = [info for info in update.tensors if info.dtype in FLOATS]
        density = _density_of(stage, floats)
        before = files.enter_context(SafetensorsReader(residual)) if residual and residual.exists() else None
        residuals = [info.as_dtype("F32") for info in floats]
        if before is not None:
            _check_residual(before, residuals)
        identity = Identity.settle(client, round, seed, before.metadata if before else {}, str(residual))
        keys = identity.keys([info.name for info in floats])

        def corrected(info: TensorInfo) -> Vector:
            return _corrected(update, before, info)

        output = files.enter_context(open_output(target))
        writer = (
            files.enter_context(SafetensorsWriter(residual, residuals, identity.remember()))
            if residual and feedback
            else None
        )
        candidates = None
        if density is not None:
            border = find_border(density, [info.num_elements for info in floats], lambda i: corrected(floats[i]))
            candidates = files.enter_context(Candidates(border, output.folder, whole=writer is not None))
            for info in floats:
                candidates.put(corrected(info))
        output.write(Header(str(compressor), update.metadata, update.tensors).write())
        for info in update.tensors:
            if info.dtype not in FLOATS:
                blob = pack_raw(update.raw(info).tobytes())
            else:
                if candidates is None:
                    vector, pipeline = corrected(info), stage
                else:
                    vector, chosen = candidates.take(info.num_elements)
                    pipeline = Pipeline((chosen, *stage.stages[1:]))
                blob = _compress_tensor(pipeline, vector, identity.round, keys[info.name])
                if writer is not None:
                    accumulate(vector, decode(blob), -1.0)
                    writer.write(vector.view(np.uint8))
            output.write(varint(len(blob)) + blob)
            if progress is not None:
                progress(info.name, info.num_bytes)
        if before is not None:
            before.close()  # some systems refuse to replace a file that is open
        if writer is not None:
            writer.finish()
        output.commit()
        if writer is not None:
            writer.commit()
        return output.num_bytes


def decompress_file(source: Path | str, target: Path | str, progress: Progress | None = None) -> None:
    """Turn a .gw file back into safetensors: every name, shape, dtype and ``__metadata__`` as it was.

    Args:
        source: the .gw file.
        target: the safetensors file; appears only when it is whole.
        progress: called with a tensor's name and its bytes.

    Raises:
        ConfigError: on files that cannot be opened or written, or are one.
        DecodeError: on a damaged .gw file; no file is left then.
        OSError: on a full disk, naming the file.
    """
    source, target = Path(source), Path(target)
    check_paths([target], [source])
    with GwReader(source) as reader, SafetensorsWriter(target, reader.tensors, reader.metadata) as writer:
        for info, blob in reader.blobs():
            if info.dtype in FLOATS:
                with naming_damage(source):
                    vector = decompress(reader.payload_of(info, blob))
                writer.write(from_float32(vector, info.dtype))
            else:
                writer.write(np.frombuffer(blob, np.uint8))
            if progress is not None:
                progress(info.name, info.num_bytes)
        writer.commit()


def inspect_file(path: Path | str) -> dict[str, Any]:
    """Tell what a .gw file holds: totals in the terms of ``gw.inspect``, and each tensor.

    Args:
        path: the .gw file.

    Returns:
        ``kind`` "file", ``spec``, ``metadata``, ``d``, ``num_kept``, the byte counts (containers, sizes and the
        file's own header count as header; other dtypes as values), ``bits_per_parameter``, ``bits_per_index`` and
        ``tensors``, one dict each.

    Raises:
        ConfigError: when it cannot be opened.
        DecodeError: when it is damaged.
    """
    tensors: list[dict[str, Any]] = []
    with GwReader(Path(path)) as reader:
        for info, blob in reader.blobs():
            entry: dict[str, Any] = {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}
            if info.dtype in FLOATS:
                reader.payload_of(info, blob)
                entry |= inspect(blob)
            else:
                entry |= {
                    "d": 0,
                    "num_kept": 0,
                    "support_bytes": 0,
                    "values_bytes": len(blob),
                    "total_bytes": len(blob),
                }
            tensors.append(entry)
        total = reader.num_bytes
        sums = {k: sum(t[k] for t in tensors) for k in ("d", "num_kept", "support_bytes", "values_bytes")}
        return {
            "kind": "file",
            "spec": reader.spec,
            "metadata": reader.metadata,
            "num_tensors": len(tensors),
            **sums,
            "header_bytes": total - sums["support_bytes"] - sums["values_bytes"],
            "total_bytes": total,
            "bits_per_parameter": 8 * total / sums["d"] if sums["d"] else None,
            "bits_per_index": 8 * sums["support_bytes"] / sums["num_kept"] if sums["num_kept"] else None,
            "tensors": tensors,
        }


def _stage(compressor: Compressor, residual: Path | None) -> tuple[Stage, bool]:
    """The pipeline to run on each tensor, and whether what it does not send is kept."""
    inner = compressor
    if isinstance(compressor, ef):
        if residual is None:
            raise ConfigError(f"{compressor} keeps a residual: give --residual FILE")
        if compressor.decay != 1.0:
            raise ConfigError(f"a residual file does not decay: give ef(...) without decay, got {compressor}")
        inner = compressor.compressor
    if not isinstance(inner, Stage):
        raise ConfigError(f"files take a pipeline of stages, or ef(...) round one; got {compressor}")
    scheduled = any(isinstance(stage, Sparsifier) and stage.scheduled for stage in inner.stages)
    if scheduled or inner.uses_reference or inner.init(Layout.flat(1)).memory:
        raise ConfigError(f"a file follows no rounds of a server, and {inner} depends on them; use topk")
    return inner, residual is not None


def _density_of(stage: Stage, floats: list[TensorInfo]) -> float | None:
    """The density of a model-wide topk, or None where every stage works on each tensor apart."""
    selector = stage.stages[0]
    wide = isinstance(selector, topk) and selector.scope == "model"
    other = next((s for s in stage.stages[wide:] if getattr(s, "scope", None) == "model"), None)
    if other is not None and len(floats) > 1:
        raise ConfigError(f"a file is made tensor by tensor, and {other} has one scale for all; give scope='tensor'")
    if not isinstance(selector, topk) or not wide:
        return None
    if selector.density is None or selector.num_bytes is not None:
        raise ConfigError(f"files take topk with a density, got {selector}")
    return selector.density


def _corrected(update: SafetensorsReader | ShardedReader, before: SafetensorsReader | None, info: TensorInfo) -> Vector:
    """A tensor of the update and what the residual has of it, as one float32 vector, finite."""
    what = f"{update.path}: tensor {info.name!r}{' as float32' if info.dtype == 'F64' else ''}"
    vector = to_float32(update.raw(info), info.dtype)
    check_finite(vector, what)
    if before is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            vector += to_float32(before.raw(info.as_dtype("F32")), "F32")
        check_finite(vector, f"{what} and its residual")
    return vector


def _compress_tensor(stage: Stage, vector: Vector, index: int, key: Key) -> bytes:
    payload, _ = stage.compress(vector, stage.init(Layout.flat(vector.size)), Round(index=index, key=key))
    return encode(payload)


def _check_residual(before: SafetensorsReader, expected: list[TensorInfo]) -> None:
    wrong = next(iter(sorted(set(expected) ^ set(before.tensors), key=lambda info: info.name)), None)
    if wrong is not None:
        what = f"tensor {wrong.name!r} of shape {wrong.shape} in {wrong.dtype} is only on one side"
        raise ConfigError(f"{before.path}: is not the residual of this update, which is float32: {what}")
