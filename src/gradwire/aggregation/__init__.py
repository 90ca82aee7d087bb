"""Many payloads -> one: means, medians, an analog channel, and the text that names them."""
