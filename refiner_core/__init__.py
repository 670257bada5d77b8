"""OmniRefiner's core: reference-guided repair of generated pictures, without ComfyUI."""

__version__ = "0.1.0"
