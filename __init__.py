"""OmniRefiner for ComfyUI: reference-guided repair of generated pictures."""

if __package__:  # loaded as a pack; a bare import (a test runner looking around) has no package

    async def comfy_entrypoint():
        """ComfyUI's way in: the pack's nodes."""
        from .nodes import OmniRefinerExtension

        return OmniRefinerExtension()


WEB_DIRECTORY = "./web"
