"""Pages from Jinja2 templates, with pictures embedded in them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image


def image_url(image: Image.Image, quality: int) -> str:
    """A picture as a WebP of that quality (1..100) in a `data:` URL."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def render_page(template: Path, **values: Any) -> str:
    """The page that the template makes of the values; all text is escaped.

    Raises:
        ModuleNotFoundError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as e:
        raise ModuleNotFoundError("Reports need Jinja2: pip install jinja2.") from e
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)
