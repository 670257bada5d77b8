"""The files of one repair: read, checked, and made into a request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from ..images.image_io import Picture, load_picture
from ..images.mask_io import read_mask
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
    references, reference_masks, notes = _references(files)
    notes = [f"draft {files.draft}: {note}" for note in draft.notes] + notes
    masks: list[Tensor | None] = []
    for path, name in ((files.mask, "mask"), (files.paste_mask, "paste mask")):
        mask, more = (None, ()) if path is None else _mask(path, draft.pixels, files, name)
        masks.append(mask)
        notes += more
    request = RefineRequest(
        draft.pixels,
        references,
        masks[0],
        reference_masks,
        options,
        notes=tuple(notes),
        paste_mask=masks[1],
    )
    return request, draft


def _mask(
    path: Path, like: Tensor, files: RepairFiles, name: str
) -> tuple[Tensor, tuple[str, ...]]:
    mask, notes = read_mask(path, name)
    if mask.shape[-2:] == like.shape[-2:]:
        return mask, notes
    if not files.resize_masks:
        raise ValueError(
            f"The {name} {path} is {mask.shape[-1]}x{mask.shape[-2]} but its picture is "
            f"{like.shape[-1]}x{like.shape[-2]}. Pass --resize-mask to resize it."
        )
    return F.interpolate(mask, like.shape[-2:], mode="bilinear", antialias=True), notes


def _references(
    files: RepairFiles,
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...], list[str]]:
    """References as they are seen, their masks, and notes about both.

    The mask of a reference is its alpha, unless a mask file is given for it.
    """
    pictures: list[Tensor] = []
    masks: list[Tensor | None] = []
    notes: list[str] = []
    for number, path in enumerate(files.references):
        picture, mask = load_picture(path, "reference").as_reference()
        notes += [f"reference {path}: {note}" for note in picture.notes]
        if number < len(files.reference_masks):
            file = files.reference_masks[number]
            mask, more = _mask(file, picture.pixels, files, "reference mask")
            notes += more
        elif mask is not None:
            notes.append(f"reference {path}: its alpha channel is taken as the reference mask")
        pictures.append(picture.pixels)
        masks.append(mask)
    return tuple(pictures), tuple(masks), notes
