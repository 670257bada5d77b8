"""Stages run by the user's own ComfyUI workflows: targets from references, and degraded drafts.

Every result is cached under `work/` by a digest of its inputs, so nothing is computed twice: neither
after an interruption nor when later stages run again.
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
from ..pair_files import PairFiles, listing_digest, picture_identity, read_pixels, shrink
from ..sample import RejectedError, Sample
from ..triplets import decode_png, encode_png
from ..workflow import Value, Workflow
from .drafts import paste_inside, with_draft, with_right_draft

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
_TITLES = "titles.json"  # which may hold characters that names of files cannot


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


@dataclass(frozen=True)
class CachedWorkflow:
    """Runs one workflow on servers and keeps the results in `folder`."""

    workflow: Workflow
    servers: Servers
    folder: Path

    def __call__(
        self, values: Mapping[str, Value], pictures: Mapping[str, np.ndarray], first: int
    ) -> dict[str, np.ndarray]:
        """The saved pictures by their nodes' titles; see `Servers.run` for what it raises."""
        used = {k: p for k, p in pictures.items() if k in self.workflow.names}
        digests = {k: _digest(p) for k, p in used.items()}
        key = json.dumps(self.workflow.fill({**values, **digests}), sort_keys=True)
        entry = self.folder / hashlib.sha256(key.encode()).hexdigest()[:32]
        if not entry.is_dir():
            made = self.servers.run(
                lambda names: self.workflow.fill({**values, **names}), used, first
            )
            self._store(entry, made)
        return {t: decode_png(p.read_bytes(), mask=False) for t, p in _titled(entry).items()}

    def _store(self, entry: Path, made: Mapping[str, np.ndarray]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=self.folder))
        try:
            for number, pixels in enumerate(made.values()):
                (temporary / f"{number}.png").write_bytes(encode_png(pixels))
            (temporary / _TITLES).write_text(json.dumps(list(made)), encoding="utf-8")
            temporary.rename(entry)
        except OSError:
            if not entry.is_dir():  # another process may have been first
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _titled(entry: Path) -> dict[str, Path]:
    """The pictures of a stored run by the titles of their nodes."""
    titles = entry / _TITLES
    if titles.is_file():
        listed: list[str] = json.loads(titles.read_text(encoding="utf-8"))
        return {title: entry / f"{number}.png" for number, title in enumerate(listed)}
    # Earlier versions named the files after the titles.
    return {path.stem: path for path in sorted(entry.glob("*.png"))}


def _pick_output(pictures: Mapping[str, np.ndarray], title: str, workflow: Workflow) -> np.ndarray:
    """The picture saved by the node with that title, or the only one there is."""
    if title in pictures:
        return pictures[title]
    others = [n for n in pictures if n not in ("mask", "reference_mask")]
    if len(others) == 1:
        return pictures[others[0]]
    raise ValueError(
        f"the workflow {os.path.basename(workflow.path)} saves several pictures "
        f"({', '.join(sorted(pictures))}): give the node whose picture to use the title {title!r}"
    )


def _as_mask(pixels: np.ndarray) -> np.ndarray:
    return np.where(pixels.max(-1) > 127, 255, 0).astype(np.uint8)


@dataclass(frozen=True)
class WorkflowPair:
    """Targets generated from reference pictures by a workflow.

    A saving node titled "mask" gives the mask of the detail, one titled "reference_mask" that of
    the reference.
    """

    cached: CachedWorkflow
    references: tuple[PairFiles, ...]  # used in turn
    prompts: tuple[str, ...]  # used in turn, shifted by one after every round of references
    side: int  # square root of the area asked for, in pixels
    source: str  # noted in every sample
    licence: str  # noted in every sample
    name: str = field(default="pair", init=False)
    version: str = field(default="workflow/2", init=False)

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
        pixels, transparent = read_pixels(path, "reference")
        reference = shrink(pixels, self.side)
        values: dict[str, Value] = {
            "prompt": prompt,
            "seed": sample.seed % (1 << 32),
            "width": self.side,
            "height": self.side,
        }
        made = self.cached(values, {"reference": reference}, sample.number)
        target = _pick_output(made, "target", self.cached.workflow)
        masks = {n: _as_mask(made[n]) for n in ("mask", "reference_mask") if n in made}
        if min(target.shape[:2]) < 32:
            raise RejectedError(f"the target is only {target.shape[1]}x{target.shape[0]} px")
        info = sample.noted(
            pair=file.name,
            identity=picture_identity(path),
            source=self.source,
            licence=self.licence,
            workflow=self.cached.workflow.digest,
            side=self.side,
            generated={"prompt": prompt, "seed": values["seed"]},
            **({"composited_over_white": ["reference"]} if transparent else {}),
        )
        return replace(
            sample, reference=reference, target=target, prompt=prompt, **masks, info=info
        )


@dataclass(frozen=True)
class WorkflowDegrade:
    """Drafts made by an inpainting or editing workflow that does not see the reference.

    Its result is pasted inside the mask with a soft edge; the rest stays bit for bit.
    """

    cached: CachedWorkflow
    strength: tuple[float, float] = (0.3, 1.0)  # range of the workflow's strength
    identity: float = 0.05  # share of samples whose draft is right
    min_change: float = 2.0  # mean change in the mask, of 255
    name: str = field(default="degrade", init=False)
    version: str = field(default="workflow/1", init=False)

    def settings(self) -> dict[str, Any]:
        return {
            "workflow": self.cached.workflow.digest,
            "strength": list(self.strength),
            "identity": self.identity,
            "least": self.min_change,
        }

    def __call__(self, sample: Sample) -> Sample:
        rng = sample.rng("degrade")
        reference, _ = sample.pair()
        target, mask = sample.target_and_mask()
        right = rng.random() < self.identity
        strength = round(float(rng.uniform(*self.strength)), 3)
        if right:
            return with_right_draft(sample)
        values: dict[str, Value] = {
            "prompt": sample.prompt,
            "seed": int(rng.integers(1 << 32)),
            "strength": strength,
        }
        pictures = {
            "target": target,
            "mask": np.repeat(mask[..., None], 3, -1),
            "reference": reference,
        }
        outputs = self.cached(values, pictures, sample.number)
        degraded = _pick_output(outputs, "draft", self.cached.workflow)
        if degraded.shape != target.shape:
            raise ValueError(
                f"the workflow returned {degraded.shape[1]}x{degraded.shape[0]} px for a target of "
                f"{target.shape[1]}x{target.shape[0]}: it must keep the size"
            )
        note = {
            "name": "workflow",
            "workflow": self.cached.workflow.digest,
            "strength": strength,
            "seed": values["seed"],
        }
        draft = paste_inside(target, degraded, mask)
        return with_draft(sample, draft, self.min_change, note)
