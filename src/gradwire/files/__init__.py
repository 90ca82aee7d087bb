"""Model updates and states on disk: .gw archives, safetensors, the store."""
