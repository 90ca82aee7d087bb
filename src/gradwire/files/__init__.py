"""Model updates and states on disk: .gw archives, safetensors, the store."""

from gradwire.files.archive import aggregate_files, compress_file, decompress_file, inspect_file

__all__ = ["aggregate_files", "compress_file", "decompress_file", "inspect_file"]
