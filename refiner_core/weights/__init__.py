"""Weight files: what they are, how their weights are called, and how LoRAs lie on them."""
