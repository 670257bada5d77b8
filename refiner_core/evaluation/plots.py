"""Two small plots as inline SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 420, 300, 52, 40, 26


def _nice_ticks(low: float, high: float) -> list[float]:
    """Round values that span the range, about five."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-9) / 4))
    step *= next((m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6), 10)
    first = math.floor(low / step)
    return [i * step for i in range(first, math.ceil(high / step) + 1)]


def _frame(title: str, body: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" class="plot" role="img" aria-label="{escape(title)}">'
        f'<text x="{_LEFT}" y="16" class="title">{escape(title)}</text>' + "".join(body) + "</svg>"
    )


def scatter(
    points: Sequence[tuple[float, float, str]], title: str, x_title: str, y_title: str
) -> str:
    """Points (x, y, name) with the diagonal: above it, y is larger."""
    if not points:
        return ""
    values = [v for p in points for v in p[:2]]
    ticks = _nice_ticks(min(values), max(values))
    low, high = ticks[0], max(ticks[-1], ticks[0] + 1e-9)

    def x(v: float) -> float:
        return _LEFT + (v - low) / (high - low) * (_WIDTH - _LEFT - 12)

    def y(v: float) -> float:
        return _HEIGHT - _BOTTOM - (v - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    body = []
    for t in ticks:
        body.append(f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"/>')
        body.append(f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>')
        body.append(f'<text x="{x(t):.1f}" y="{y(low) + 14:.1f}" text-anchor="middle">{t:g}</text>')
        body.append(f'<text x="{x(low) - 6:.1f}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>')
    body.append(
        f'<line class="even" x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(high):.1f}" y2="{y(high):.1f}"/>'
    )
    for px, py, name in points:
        body.append(
            f'<circle cx="{x(px):.1f}" cy="{y(py):.1f}" r="3.5"><title>{escape(name)}: '
            f"{px:.3g} to {py:.3g}</title></circle>"
        )
    body.append(
        f'<text x="{_WIDTH - 12}" y="{_HEIGHT - 8}" text-anchor="end">{escape(x_title)}</text>'
    )
    body.append(f'<text x="{_LEFT + 6}" y="{_TOP + 12}">{escape(y_title)}</text>')
    return _frame(title, body)


def bars(values: Mapping[str, float], title: str, digits: int) -> str:
    """One horizontal bar per name, from 0."""
    if not values:
        return ""
    high = max(max(values.values()), 1e-9)
    pitch = min(40, (_HEIGHT - _TOP - 8) / len(values))
    body = []
    for i, (name, value) in enumerate(values.items()):
        y = _TOP + 8 + i * pitch
        width = max(0.0, value) / high * (_WIDTH - 190)
        body.append(
            f'<text x="130" y="{y + pitch * 0.62:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        body.append(f'<rect x="136" y="{y + 2:.1f}" width="{width:.1f}" height="{pitch - 6:.1f}"/>')
        body.append(
            f'<text x="{140 + width:.1f}" y="{y + pitch * 0.62:.1f}">{value:.{digits}f}</text>'
        )
    return _frame(title, body)
