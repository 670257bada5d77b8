"""The networks of the core engine: FLUX.1-Kontext, its text encoders and codec, and their tokens."""
