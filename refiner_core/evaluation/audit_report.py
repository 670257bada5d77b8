"""The audit as one HTML file: figures, agreement, and the pairs that each scorer gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..data.html_page import image_url, render_page
from ..storage.output_files import write_text
from .audit import (
    Audit,
    AuditedPair,
    agreement,
    audit_kinds,
    format_share,
    summarise_audit,
)
from .audit_orders import AuditOrder, read_orders
from .cases import open_cases
from .metric import cut, region_box

_TILE = 180  # px: longer side of a picture
_CONTEXT = 1.6  # of the region's box


def write_audit_report(
    path: Path,
    audit: Audit,
    data: Path,
    *,
    split: str | None = None,
    results: Path | None = None,
    shown: int = 12,
) -> None:
    """Write the report, completely or not at all.

    Args:
        shown: pairs per scorer that it gets wrong, the most certain first.

    Raises:
        ModuleNotFoundError: Jinja2 is not installed.
    """
    wrong = {s.name: wrong_pairs(audit, s.name) for s in summarise_audit(audit)}
    chosen = {p.case for pairs in wrong.values() for p in pairs[:shown]}
    ids = open_cases(data, split).ids
    orders = {
        name: read_orders(data, split, i, results) for i, name in enumerate(ids) if name in chosen
    }
    page = render_page(
        Path(__file__).with_name("audit.html.j2"),
        data=str(data),
        audit=audit,
        scorers=summarise_audit(audit),
        kinds=audit_kinds(audit),
        share=format_share,
        agreement=_agreement_rows(audit),
        wrong=[
            {
                "scorer": name,
                "count": len(pairs),
                "pairs": [_picture_row(p, orders[p.case][p.order]) for p in pairs[:shown]],
            }
            for name, pairs in wrong.items()
        ],
    )
    write_text(path, page)


def wrong_pairs(audit: Audit, scorer: str) -> list[AuditedPair]:
    """The pairs that a scorer gets wrong, the one with the largest relative difference first."""
    wrong = [p for p in audit.pairs if p.scorer == scorer and not p.right]

    def certainty(pair: AuditedPair) -> float:
        a, b = pair.distances
        return abs(a - b) / max(abs(a), abs(b), 1e-9)

    return sorted(wrong, key=certainty, reverse=True)


def _agreement_rows(audit: Audit) -> list[tuple[str, Sequence[str]]]:
    shares, names = agreement(audit), list(audit.taus)
    return [(a, [format_share(shares[a, b]) for b in names]) for a in names]


def _picture_row(pair: AuditedPair, order: AuditOrder) -> dict[str, Any]:
    """The two pictures and the truth with what the scorer said."""
    box = region_box(order.mask, _CONTEXT)
    pictures = [order.pictures[pair.better], order.pictures[pair.worse], order.truth]
    names = [
        f"{pair.names[0]}: {pair.distances[0]:.4g}",
        f"{pair.names[1]}: {pair.distances[1]:.4g}",
        "truth",
    ]
    tiles = [
        {"name": name, **_tile(cut(picture, box))}
        for name, picture in zip(names, pictures, strict=True)
    ]
    return {"case": pair.case, "kind": pair.kind, "tie": pair.tie, "tiles": tiles}


def _tile(pixels: Tensor) -> dict[str, Any]:
    image = Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())
    scale = _TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    url = image_url(image.resize(size, Image.Resampling.LANCZOS), quality=88)
    return {"url": url, "width": size[0], "height": size[1]}
