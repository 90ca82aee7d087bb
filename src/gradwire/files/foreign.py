"""Files of other kinds: what they are, in words that say what to do."""

from __future__ import annotations

from pathlib import Path

__all__ = ["describe"]

_SAVE = "save its tensors with safetensors.torch.save_file"
_PICKLE = f"a pickle (an old PyTorch .pt or .bin?): load it with torch.load(weights_only=True) and {_SAVE}"
_UNPACK = "unpack it first"
_SIGNS = (
    (b"version https://git-lfs", "a Git LFS pointer in the place of the file: run 'git lfs pull'"),
    (b"GWFILE", "a .gw file: 'gradwire decompress' turns it into safetensors"),
    (b"GW\1", "a single payload: gw.decode reads it, and files hold a payload a tensor"),
    (b"\x93NUMPY", "a NumPy array (.npy): save named arrays with safetensors.numpy.save_file"),
    (b"\x89HDF", "an HDF5 file (Keras .h5): save named arrays with safetensors.numpy.save_file"),
    (b"GGUF", "a GGUF file: gradwire reads safetensors"),
    *((bytes([0x80, version]), _PICKLE) for version in range(2, 6)),
    (b"\x1f\x8b", f"a gzip archive: {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"a zstd archive: {_UNPACK}"),
    (b"\xfd7zXZ", f"an xz archive: {_UNPACK}"),
    (b"BZh", f"a bzip2 archive: {_UNPACK}"),
    (b"<", "a web page or XML: was the download refused?"),
)


def describe(path: Path, head: bytes) -> str | None:
    """Tell what a file is by its first bytes.

    Args:
        path: the file, whose table of contents is read where it is a zip archive.
        head: its first 32 bytes, or all where there are fewer.

    Returns:
        What it is and what to do about it, or None where it cannot be told.
    """
    if not head:
        return "empty"
    if head.startswith(b"PK\3\4"):
        return _describe_zip(path)
    if b"\0" not in head and head.lstrip()[:1] in (b"{", b"["):
        return "JSON text (an index of shards would have a 'weight_map')"
    return next((text for sign, text in _SIGNS if head.startswith(sign)), None)


def _describe_zip(path: Path) -> str:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return "a damaged zip archive (a PyTorch .pt or NumPy .npz cut short?)"
    if any(name.endswith("data.pkl") for name in names):
        return f"a PyTorch file (zip archive): load it with torch.load(weights_only=True) and {_SAVE}"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz): save dict(numpy.load(...)) with safetensors.numpy.save_file"
    return f"a zip archive: {_UNPACK}"
