"""Stages done by the user's own ComfyUI workflows: make targets from references, break details.

Every result is kept under `work/` by what went in, so nothing is computed twice: not after an
interruption, nor when later stages run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..comfyui import Servers
from ..triplets import decode_png, encode_png
from ..workflow import Value, Workflow
from .files import PairFile, listing_digest, picture_identity, read_pixels, shrunk
from .interface import RejectedError, Sample
from .pasting import paste_inside

PAIR_PLACEHOLDERS = {
    "reference": "the reference picture, in Load Image",
    "prompt": "a line of the prompts file",
    "seed": "a whole number",
    "width": "pixels",
    "height": "pixels",
}
DEGRADE_PLACEHOLDERS = {
    "target": "the right picture, in Load Image",
    "mask": "the region, white on black, in Load Image or Load Image (as Mask)",
    "reference": "the reference picture, in Load Image",
    "prompt": "the sample's prompt",
    "seed": "a whole number",
    "strength": "0 to 1",
}


def _mark(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


@dataclass(frozen=True)
class Cached:
    """Runs one workflow on servers and keeps the results in `folder`."""

    workflow: Workflow
    servers: Servers
    folder: Path

    def __call__(
        self, values: Mapping[str, Value], pictures: Mapping[str, np.ndarray], first: int
    ) -> dict[str, np.ndarray]:
        """The saved pictures by their nodes' titles; see `Servers.run` for what it raises."""
        used = {k: p for k, p in pictures.items() if k in self.workflow.names}
        marks = {k: _mark(p) for k, p in used.items()}
        key = json.dumps(self.workflow.fill({**values, **marks}), sort_keys=True)
        place = self.folder / hashlib.sha256(key.encode()).hexdigest()[:32]
        if not place.is_dir():
            made = self.servers.run(
                lambda names: self.workflow.fill({**values, **names}), used, first
            )
            self._keep(place, made)
        return {p.stem: decode_png(p.read_bytes(), mask=False) for p in sorted(place.glob("*.png"))}

    def _keep(self, place: Path, made: Mapping[str, np.ndarray]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=self.folder))
        try:
            for title, pixels in made.items():
                (temporary / f"{title.replace('/', '_')}.png").write_bytes(encode_png(pixels))
            temporary.rename(place)
        except OSError:
            if not place.is_dir():  # another process may have been first
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _chosen(pictures: Mapping[str, np.ndarray], title: str, workflow: Workflow) -> np.ndarray:
    """The picture saved by the node of that title, or the only one there is."""
    if title in pictures:
        return pictures[title]
    others = [n for n in pictures if n not in ("mask", "reference_mask")]
    if len(others) == 1:
        return pictures[others[0]]
    raise ValueError(
        f"the workflow {os.path.basename(workflow.path)} saves several pictures "
        f"({', '.join(sorted(pictures))}): give the node to take the title {title!r}"
    )


def _as_mask(pixels: np.ndarray) -> np.ndarray:
    return np.where(pixels.max(-1) > 127, 255, 0).astype(np.uint8)


@dataclass(frozen=True)
class WorkflowPair:
    """Targets generated from reference pictures by a workflow.

    `references` the pictures, taken in turn with `prompts` (every prompt for a picture before the
    next round); `side` square root of the area asked for. A saving node titled "mask" gives the
    mask of the detail, one titled "reference_mask" that of the reference.
    """

    cached: Cached
    references: tuple[PairFile, ...]
    prompts: tuple[str, ...]
    side: int
    source: str
    licence: str
    name: str = field(default="pair", init=False)
    version: str = field(default="workflow/1", init=False)

    def settings(self) -> dict[str, Any]:
        return {
            "workflow": self.cached.workflow.digest,
            "references": listing_digest(self.references),
            "prompts": list(self.prompts),
            "side": self.side,
            "source": self.source,
        }

    def __call__(self, sample: Sample) -> Sample:
        file = self.references[sample.number % len(self.references)]
        round_ = sample.number // len(self.references)
        prompt = self.prompts[(sample.number + round_) % len(self.prompts)]
        path = file.files["reference"]
        reference = shrunk(read_pixels(path, "reference")[0], self.side)
        values: dict[str, Value] = {
            "prompt": prompt, "seed": sample.seed % (1 << 32), "width": self.side, "height": self.side,
        }  # fmt: skip
        made = self.cached(values, {"reference": reference}, sample.number)
        target = _chosen(made, "target", self.cached.workflow)
        marks = {n: _as_mask(made[n]) for n in ("mask", "reference_mask") if n in made}
        if min(target.shape[:2]) < 32:
            raise RejectedError(f"the target is only {target.shape[1]}x{target.shape[0]} px")
        return replace(
            sample, reference=reference, target=target, prompt=prompt, **marks,
            info=sample.noted(
                pair=file.name, identity=picture_identity(path), source=self.source,
                licence=self.licence, workflow=self.cached.workflow.digest, side=self.side,
                generated={"prompt": prompt, "seed": values["seed"]},
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class WorkflowDegrade:
    """Drafts made by an inpainting or editing workflow that does not know the reference.

    What it returns goes in through the mask with a soft edge; the rest stays bit for bit.
    `strength` range the workflow's strength is drawn from; `identity` share of right drafts;
    `least` mean change in the mask, of 255.
    """

    cached: Cached
    strength: tuple[float, float] = (0.3, 1.0)
    identity: float = 0.05
    least: float = 2.0
    name: str = field(default="degrade", init=False)
    version: str = field(default="workflow/1", init=False)

    def settings(self) -> dict[str, Any]:
        return {
            "workflow": self.cached.workflow.digest,
            "strength": list(self.strength),
            "identity": self.identity,
            "least": self.least,
        }

    def __call__(self, sample: Sample) -> Sample:
        rng = sample.rng("degrade")
        reference, target = sample.pair()
        assert sample.mask is not None, "the mask stage comes first"
        exact = rng.random() < self.identity
        strength = round(float(rng.uniform(*self.strength)), 3)
        if exact:
            note = {"name": "identity", "strength": 0.0}
            return replace(sample, draft=target.copy(), info=sample.noted(degradation=note))
        values: dict[str, Value] = {
            "prompt": sample.prompt, "seed": int(rng.integers(1 << 32)), "strength": strength,
        }  # fmt: skip
        pictures = {
            "target": target,
            "mask": np.repeat(sample.mask[..., None], 3, -1),
            "reference": reference,
        }
        broken = _chosen(
            self.cached(values, pictures, sample.number), "draft", self.cached.workflow
        )
        if broken.shape != target.shape:
            raise ValueError(
                f"the workflow returned {broken.shape[1]}x{broken.shape[0]} px for a target of "
                f"{target.shape[1]}x{target.shape[0]}: it must keep the size"
            )
        draft = paste_inside(target, broken, sample.mask)
        change = float(np.abs(draft.astype(np.int16) - target)[sample.mask > 0].mean())
        if change < self.least:
            raise RejectedError(f"the workflow changed the detail by {change:.2f} of 255 only")
        note = {
            "name": "workflow", "workflow": self.cached.workflow.digest, "strength": strength,
            "seed": values["seed"], "change": round(change, 3),
        }  # fmt: skip
        return replace(sample, draft=draft, info=sample.noted(degradation=note))
