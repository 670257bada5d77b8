"""The options of `omnirefiner data build` that choose and set up its four stages."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.comfyui import Servers
    from ..data.stages.files import PairFile
    from ..data.stages.generated import Cached
    from ..data.stages.interface import Stage
    from ..data.stages.selection import ScoreSelect

STAGES = ("pair", "select", "mask", "degrade")
_UNKNOWN = "unknown: to be checked before use"


def add_stage_options(p: argparse.ArgumentParser) -> None:
    """Add the stages' options, one group a stage."""
    _add_pair_options(p)
    _add_select_options(p)
    mask = p.add_argument_group("mask")
    mask.add_argument(
        "--masks", choices=("given", "boxes", "alpha"), default="given",
        help="of real pairs: mask files or the workflow's, a detector's boxes, or the alpha channel; "
        "default: %(default)s",
    )  # fmt: skip
    mask.add_argument("--boxes", metavar="FILE", help="JSON of boxes, for --masks boxes")
    mask.add_argument("--outline-masks", action="store_true", help="drawn: no boxes and ellipses")
    degrade = p.add_argument_group("degrade")
    degrade.add_argument(
        "--identity", type=float, default=0.05, metavar="SHARE",
        help="of the samples, whose draft is right already; default: %(default)s",
    )  # fmt: skip
    degrade.add_argument(
        "--degrade-workflow", metavar="FILE",
        help="API-format workflow with {{target}} and {{mask}} that spoils the region",
    )  # fmt: skip
    degrade.add_argument("--given-drafts", action="store_true", help="the pairs' own drafts")
    degrade.add_argument(
        "--degradation", action="append", metavar="NAME",
        help="of real pairs: only this one, may be repeated",
    )  # fmt: skip


def _add_pair_options(p: argparse.ArgumentParser) -> None:
    pair = p.add_argument_group("pair (default: drawn, offline)")
    pair.add_argument(
        "--pairs", metavar="DIR", help="existing pairs: a folder of pairs, or Critic-10K's layout"
    )
    pair.add_argument(
        "--pair-workflow", metavar="FILE",
        help="API-format workflow with {{reference}}, run on --comfyui for every sample",
    )  # fmt: skip
    pair.add_argument("--references", metavar="DIR", help="its reference pictures")
    pair.add_argument("--prompts", metavar="FILE", help="its prompts, one a line")
    pair.add_argument(
        "--comfyui", action="append", default=[], metavar="URL", help="a server; may be repeated"
    )
    pair.add_argument(
        "--comfyui-timeout",
        type=float,
        default=900,
        metavar="S",
        help="for one graph; default: 900",
    )
    pair.add_argument("--source", dest="origin", metavar="TEXT", help="noted in every sample")
    pair.add_argument("--licence", default=_UNKNOWN, metavar="TEXT", help="noted in every sample")
    pair.add_argument(
        "--size", type=int, metavar="PX",
        help="square root of a picture's area; default: 512 drawn, 1024 generated, files as they are",
    )  # fmt: skip
    pair.add_argument("--square", action="store_true", help="drawn: no other aspects")
    pair.add_argument("--flat", action="store_true", help="drawn: no bent surfaces")
    pair.add_argument("--detail", choices=("word", "logo", "pattern"), help="drawn: only this kind")


def _add_select_options(p: argparse.ArgumentParser) -> None:
    select = p.add_argument_group("select (of real pairs)")
    select.add_argument(
        "--scorer", choices=("structural", "dreamsim", "dinov2"), default="structural",
        help="default: %(default)s, which needs no weights and only finds copies",
    )  # fmt: skip
    select.add_argument("--scorer-weights", metavar="PATH", help="DreamSim file or DINOv2 folder")
    select.add_argument("--min-distance", type=float, default=0.02, help="default: %(default)s")
    select.add_argument("--max-distance", type=float, help="default: any")
    select.add_argument("--min-sharpness", type=float, default=15.0, help="default: %(default)s")
    select.add_argument(
        "--min-side", type=int, default=64, metavar="PX", help="default: %(default)s"
    )
    select.add_argument("--vlm", metavar="URL", help="OpenAI-compatible endpoint that judges pairs")
    select.add_argument("--vlm-model", metavar="NAME")
    select.add_argument("--vlm-least", type=float, default=60, help="of 100; default: %(default)s")
    select.add_argument(
        "--vlm-key-env", metavar="NAME", help="environment variable that holds its key"
    )


def chosen_stages(chosen: argparse.Namespace, wanted: Sequence[str]) -> tuple[Stage, ...]:
    """The stages that run, set up from the options.

    Raises:
        ValueError: options that contradict each other, or a file that cannot be used.
    """
    _check(chosen, wanted)
    if not chosen.pairs and not chosen.pair_workflow:
        return tuple(s for s in _drawn(chosen) if s.name in wanted)
    from ..data.stages.files import find_pairs, find_references

    if chosen.pairs:
        pairs = find_pairs(Path(chosen.pairs))
    else:
        pairs = find_references(_needed(chosen.references, "--references"))
    made = {
        "pair": lambda: _real_pair(chosen, pairs),
        "select": lambda: _select(chosen),
        "mask": lambda: _mask(chosen, pairs if chosen.pairs else ()),
        "degrade": lambda: _degrade(chosen, pairs),
    }
    return tuple(made[name]() for name in STAGES if name in wanted)


def _needed(path: str | None, option: str) -> Path:
    if not path:
        raise ValueError(f"{option} is needed here.")
    return Path(path)


def _check(chosen: argparse.Namespace, wanted: Sequence[str]) -> None:
    real = bool(chosen.pairs or chosen.pair_workflow)
    clashes = [
        (chosen.pairs and chosen.pair_workflow, "--pairs and --pair-workflow are two sources"),
        (chosen.degrade_workflow and chosen.given_drafts,
         "--degrade-workflow and --given-drafts both make the draft"),
        (chosen.boxes and chosen.masks != "boxes", "--boxes needs --masks boxes"),
        (not real and chosen.masks != "given", "--masks is for real pairs (--pairs, --pair-workflow)"),
        (not real and chosen.given_drafts, "--given-drafts needs --pairs"),
        (not real and chosen.degradation, "--degradation is for real pairs"),
        (chosen.pair_workflow and chosen.given_drafts, "--given-drafts needs --pairs"),
        (chosen.pair_workflow and chosen.masks == "alpha", "--masks alpha needs --pairs"),
        (real and (chosen.square or chosen.flat or chosen.detail or chosen.outline_masks),
         "--square, --flat, --detail and --outline-masks are for drawn pairs"),
        (chosen.vlm and not chosen.vlm_model, "--vlm needs --vlm-model"),
        (not 0 <= chosen.identity <= 1, f"--identity must be 0 to 1, got {chosen.identity}"),
        (chosen.size is not None and not 32 <= chosen.size <= 4096,
         f"--size must be 32 to 4096 px, got {chosen.size}"),
    ]  # fmt: skip
    for clash, message in clashes:
        if clash:
            raise ValueError(f"{message}.")


def _drawn(chosen: argparse.Namespace) -> tuple[Stage, ...]:
    from ..data.stages.procedural import (
        ProceduralDegrade,
        ProceduralMask,
        ProceduralPair,
        ProceduralSelect,
    )

    pair = ProceduralPair(
        chosen.size or 512, chosen.square, chosen.detail, chosen.held_out, chosen.flat
    )
    degrade: Stage = ProceduralDegrade(pair, chosen.identity)
    if chosen.degrade_workflow:
        degrade = _workflow_degrade(chosen)
    return (pair, ProceduralSelect(pair), ProceduralMask(pair, not chosen.outline_masks), degrade)


def _servers(chosen: argparse.Namespace) -> Servers:
    from ..data.comfyui import servers_of

    return servers_of(chosen.comfyui, chosen.comfyui_timeout)


def _cached(chosen: argparse.Namespace, file: str, known: dict[str, str], *needed: str) -> Cached:
    from ..data.stages.generated import Cached
    from ..data.workflow import load_workflow

    workflow = load_workflow(Path(file), known, needed)
    return Cached(workflow, _servers(chosen), Path(chosen.out) / "work")


def _real_pair(chosen: argparse.Namespace, pairs: tuple[PairFile, ...]) -> Stage:
    from ..data.stages.files import FilePair
    from ..data.stages.generated import PAIR_PLACEHOLDERS, WorkflowPair

    if chosen.pairs:
        origin = chosen.origin or f"folder {Path(chosen.pairs).name}"
        return FilePair(pairs, chosen.size, origin, chosen.licence)
    cached = _cached(chosen, chosen.pair_workflow, PAIR_PLACEHOLDERS, "reference")
    prompts = [""]
    if chosen.prompts:
        lines = Path(chosen.prompts).read_text(encoding="utf-8").splitlines()
        prompts = [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise ValueError(f"The prompts file {chosen.prompts} is empty.")
    origin = chosen.origin or f"workflow {Path(chosen.pair_workflow).name}"
    return WorkflowPair(cached, pairs, tuple(prompts), chosen.size or 1024, origin, chosen.licence)


def _select(chosen: argparse.Namespace) -> ScoreSelect:
    from ..data.stages.selection import ScoreSelect, Verdict, load_scorer

    verdict = None
    if chosen.vlm:
        key = os.environ.get(chosen.vlm_key_env) if chosen.vlm_key_env else None
        if chosen.vlm_key_env and not key:
            raise ValueError(
                f"The environment variable {chosen.vlm_key_env} (--vlm-key-env) is empty."
            )
        verdict = Verdict(chosen.vlm, chosen.vlm_model, chosen.vlm_least, key)
    load_scorer(chosen.scorer, chosen.scorer_weights)  # fails here rather than at every sample
    return ScoreSelect(
        chosen.scorer, chosen.scorer_weights, chosen.min_distance, chosen.max_distance,
        chosen.min_side, chosen.min_sharpness, verdict,
    )  # fmt: skip


def _mask(chosen: argparse.Namespace, pairs: tuple[PairFile, ...]) -> Stage:
    from ..data.stages.masking import AlphaMask, BoxMask, GivenMask, load_boxes

    if chosen.masks == "boxes":
        return BoxMask(load_boxes(_needed(chosen.boxes, "--boxes")))
    return AlphaMask(pairs) if chosen.masks == "alpha" else GivenMask(pairs)


def _workflow_degrade(chosen: argparse.Namespace) -> Stage:
    from ..data.stages.generated import DEGRADE_PLACEHOLDERS, WorkflowDegrade

    cached = _cached(chosen, chosen.degrade_workflow, DEGRADE_PLACEHOLDERS, "target", "mask")
    return WorkflowDegrade(cached, identity=chosen.identity)


def _degrade(chosen: argparse.Namespace, pairs: tuple[PairFile, ...]) -> Stage:
    from ..data.degrade import DEGRADATIONS
    from ..data.stages.degrading import GivenDraft, RegionDegrade

    if chosen.degrade_workflow:
        return _workflow_degrade(chosen)
    if chosen.given_drafts:
        return GivenDraft(pairs)
    return RegionDegrade(tuple(chosen.degradation or DEGRADATIONS), chosen.identity)
