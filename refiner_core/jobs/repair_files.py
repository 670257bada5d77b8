"""The files of one repair: read, checked, and made into a request."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from torch import Tensor

from ..images.image_io import Picture, load_picture
from ..images.mask_io import read_mask_of, read_reference
from ..repair.request import RefineOptions, RefineRequest


@dataclass(frozen=True)
class RepairFiles:
    """What is repaired, from what, and where."""

    draft: Path
    """The picture to repair."""
    references: tuple[Path, ...]
    """Up to three pictures of the correct detail."""
    mask: Path | None = None
    """White is repaired; None: the whole picture."""
    reference_masks: tuple[Path, ...] = ()
    """White is the detail, in the order of the references; where there is none, their alpha."""
    paste_mask: Path | None = None
    """White is pasted of the repaired crop; None: the region."""
    resize_masks: bool = False
    """Whether masks are resized to the size of their pictures."""

    def __post_init__(self) -> None:
        if len(self.reference_masks) > len(self.references):
            raise ValueError(
                f"{len(self.reference_masks)} reference masks for {len(self.references)} references. "
                "Give at most one for each."
            )

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""
        single = [p for p in (self.draft, self.mask, self.paste_mask) if p is not None]
        return (*single, *self.references, *self.reference_masks)


def read_request(files: RepairFiles, options: RefineOptions) -> tuple[RefineRequest, Picture]:
    """The request that the files and the options make, and the draft's file with its alpha.

    Raises:
        ValueError: a file that cannot be used, or sizes that do not go together.
        OSError: a file cannot be read.
    """
    draft = load_picture(files.draft, "draft")
    notes = [f"draft {files.draft}: {note}" for note in draft.notes]
    references: list[Tensor] = []
    reference_masks: list[Tensor | None] = []
    for path, mask_path in zip_longest(files.references, files.reference_masks):
        reference, mask, more = read_reference(path, mask_path, files.resize_masks)
        references.append(reference)
        reference_masks.append(mask)
        notes += more
    masks: list[Tensor | None] = []
    for path, name in ((files.mask, "mask"), (files.paste_mask, "paste mask")):
        mask = None
        if path is not None:
            mask, more = read_mask_of(path, draft.pixels, name, resize=files.resize_masks)
            notes += more
        masks.append(mask)
    request = RefineRequest(
        draft.pixels,
        tuple(references),
        masks[0],
        tuple(reference_masks),
        options,
        notes=tuple(notes),
        paste_mask=masks[1],
    )
    return request, draft
