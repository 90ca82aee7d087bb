"""Model updates and states on disk: .gw archives, safetensors, the store."""

from gradwire.files.archive import compress_file, decompress_file, inspect_file
from gradwire.files.averaging import aggregate_files

__all__ = ["aggregate_files", "compress_file", "decompress_file", "inspect_file"]
