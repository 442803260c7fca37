"""An icon's SVG as pixels."""

import io
from typing import Any

from PIL import Image

from miniai.base.errors import UserError
from miniai.recipes.emoji_concepts import Icon


def renderer() -> Any:
    """The module resvg_py, or a UserError that says how to get it."""
    try:
        import resvg_py
    except ImportError as error:
        raise UserError("resvg-py draws the pictures and is not installed; run: pip install '.[data]'") from error
    return resvg_py


def render(icon: Icon, size: int) -> bytes:
    """The icon as an RGB PNG of size x size pixels on white, its proportions kept.

    Fonts of the machine are not used, so that a drawing looks the same everywhere. Raises ValueError for broken SVG.
    """
    flip = f'transform="translate({2 * icon.left + icon.width} 0) scale(-1 1)"' if icon.flip else ""
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{icon.left} {icon.top} {icon.width} {icon.height}">'
        f"<g {flip}>{icon.body}</g></svg>"
    )
    drawn = renderer().svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(drawn))) as image:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
