"""The options of `omnirefiner data build` that choose and configure its four stages."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.own_files import OwnFiles
    from ..data.pair_files import PairFiles
    from ..data.sample import BuildStage
    from ..data.stages.generated import CachedWorkflow
    from ..data.stages.selection import ScoreSelect, VlmVerdict

STAGES = ("pair", "select", "mask", "degrade")
_UNKNOWN_LICENCE = "unknown: to be checked before use"


def add_stage_options(p: argparse.ArgumentParser) -> None:
    """Add the stages' options, one group per stage."""
    _add_source_options(p)
    _add_procedural_options(p)
    _add_select_options(p)
    mask = p.add_argument_group("mask")
    mask.add_argument(
        "--masks",
        choices=("given", "boxes", "alpha"),
        default="given",
        help="of real pairs: mask files or the workflow's masks, a detector's boxes, or the alpha "
        "channel; default: %(default)s",
    )
    mask.add_argument(
        "--boxes", metavar="FILE", help="JSON file with a detector's boxes, for --masks boxes"
    )
    degrade = p.add_argument_group("degrade")
    degrade.add_argument(
        "--identity",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of the samples whose draft is correct already; default: %(default)s",
    )
    degrade.add_argument(
        "--degrade-workflow",
        metavar="FILE",
        help="API-format workflow with {{target}} and {{mask}} that degrades the region",
    )
    degrade.add_argument("--given-drafts", action="store_true", help="use the pairs' own drafts")
    degrade.add_argument(
        "--degradation",
        action="append",
        metavar="NAME",
        help="of real pairs: use only this degradation; repeatable",
    )


def _add_source_options(p: argparse.ArgumentParser) -> None:
    pair = p.add_argument_group("pair (default: procedural, offline)")
    pair.add_argument(
        "--pairs", metavar="DIR", help="existing pairs: a folder of pairs, or Critic-10K's layout"
    )
    pair.add_argument(
        "--pair-workflow",
        metavar="FILE",
        help="API-format workflow with {{reference}}, run on --comfyui for every sample",
    )
    pair.add_argument("--references", metavar="DIR", help="the workflow's reference pictures")
    pair.add_argument("--prompts", metavar="FILE", help="the workflow's prompts, one per line")
    pair.add_argument(
        "--comfyui", action="append", default=[], metavar="URL", help="a ComfyUI server; repeatable"
    )
    pair.add_argument(
        "--comfyui-timeout",
        type=float,
        default=900,
        metavar="S",
        help="seconds to wait for one graph; default: 900",
    )
    pair.add_argument(
        "--source",
        dest="origin",
        metavar="TEXT",
        help="where the pictures come from; noted in every sample",
    )
    pair.add_argument(
        "--licence",
        default=_UNKNOWN_LICENCE,
        metavar="TEXT",
        help="license of the pictures; noted in every sample",
    )
    pair.add_argument(
        "--size",
        type=int,
        metavar="PX",
        help="square root of a picture's area; default: 512 for procedural and 1024 for generated "
        "pairs, unchanged for files",
    )


def _add_procedural_options(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("procedural pairs")
    g.add_argument("--square", action="store_true", help="make square pictures only")
    g.add_argument("--flat", action="store_true", help="draw flat surfaces only")
    g.add_argument(
        "--detail", choices=("word", "logo", "pattern"), help="draw only this kind of detail"
    )
    g.add_argument(
        "--outline-masks",
        action="store_true",
        help="use exact outlines as masks, no boxes or ellipses",
    )
    for option, used_for in (
        ("--photos", "photographs (PNG, JPEG, ...) for the backgrounds"),
        ("--fonts", "fonts (.ttf, .otf, .ttc) for words, in every script that they can write"),
        ("--artwork", "emblems and drawings (.png with alpha, .svg) for logos"),
    ):
        g.add_argument(
            option,
            action="append",
            default=[],
            metavar="DIR",
            help=f"a folder of your own {used_for}, instead of the built-in ones; repeatable",
        )


def _add_select_options(p: argparse.ArgumentParser) -> None:
    select = p.add_argument_group("select (of real pairs)")
    select.add_argument(
        "--scorer",
        choices=("structural", "dreamsim", "dinov2"),
        default="structural",
        help="how reference and target are compared; default: %(default)s, which needs no weights and "
        "only finds copies",
    )
    select.add_argument(
        "--scorer-weights",
        metavar="PATH",
        help="the scorer's weights: a DreamSim file or a DINOv2 folder",
    )
    select.add_argument(
        "--min-distance",
        type=float,
        default=0.02,
        metavar="D",
        help="reject pairs that are more alike, as copies; default: %(default)s",
    )
    select.add_argument(
        "--max-distance",
        type=float,
        metavar="D",
        help="reject pairs that differ more; default: no limit",
    )
    select.add_argument(
        "--min-sharpness",
        type=float,
        default=15.0,
        metavar="S",
        help="reject blurry pairs: least variance of the Laplacian; default: %(default)s",
    )
    select.add_argument(
        "--min-side",
        type=int,
        default=64,
        metavar="PX",
        help="reject smaller pictures: least length of the shorter side; default: %(default)s",
    )
    select.add_argument("--vlm", metavar="URL", help="OpenAI-compatible endpoint that judges pairs")
    select.add_argument("--vlm-model", metavar="NAME", help="name of the model at --vlm")
    select.add_argument(
        "--vlm-least",
        type=float,
        default=60,
        metavar="SCORE",
        help="reject pairs that the model scores lower, 0 to 100; default: %(default)s",
    )
    select.add_argument("--vlm-key-env", metavar="NAME", help="environment variable with the key")


def chosen_own_files(chosen: argparse.Namespace) -> tuple[OwnFiles, list[str]]:
    """The user's own photographs, fonts and artwork, and a line about each kind.

    Raises:
        ValueError: a folder has nothing that can be used.
        ModuleNotFoundError: a package that fonts or SVG files need is not installed.
    """
    from ..data.own_files import find_own_files

    kinds = ([Path(d) for d in dirs] for dirs in (chosen.photos, chosen.fonts, chosen.artwork))
    return find_own_files(*kinds, held_out=chosen.held_out)


def chosen_stages(
    chosen: argparse.Namespace, wanted: Sequence[str], own: OwnFiles
) -> tuple[BuildStage, ...]:
    """The stages to run, configured by the options.

    Raises:
        ValueError: options contradict each other, or a file cannot be used.
    """
    _check(chosen, wanted)
    if not chosen.pairs and not chosen.pair_workflow:
        return tuple(s for s in _procedural_stages(chosen, own) if s.name in wanted)
    from ..data.pair_files import find_pairs, find_references

    if chosen.pairs:
        pairs = find_pairs(Path(chosen.pairs))
    else:
        pairs = find_references(_required(chosen.references, "--references"))
    factories = {
        "pair": lambda: _pair_stage(chosen, pairs),
        "select": lambda: _select_stage(chosen),
        "mask": lambda: _mask_stage(chosen, pairs if chosen.pairs else ()),
        "degrade": lambda: _degrade_stage(chosen, pairs),
    }
    return tuple(factories[name]() for name in STAGES if name in wanted)


def _required(path: str | None, option: str) -> Path:
    if not path:
        raise ValueError(f"{option} is required here.")
    return Path(path)


def _check(chosen: argparse.Namespace, wanted: Sequence[str]) -> None:
    real = bool(chosen.pairs or chosen.pair_workflow)
    procedural_only = chosen.square or chosen.flat or chosen.detail or chosen.outline_masks
    own = chosen.photos or chosen.fonts or chosen.artwork
    conflicts = [
        (chosen.pairs and chosen.pair_workflow, "--pairs and --pair-workflow exclude each other"),
        (
            chosen.degrade_workflow and chosen.given_drafts,
            "--degrade-workflow and --given-drafts exclude each other",
        ),
        (chosen.boxes and chosen.masks != "boxes", "--boxes needs --masks boxes"),
        (
            not real and chosen.masks != "given",
            "--masks is for real pairs (--pairs, --pair-workflow)",
        ),
        (not chosen.pairs and chosen.given_drafts, "--given-drafts needs --pairs"),
        (not real and chosen.degradation, "--degradation is for real pairs"),
        (chosen.pair_workflow and chosen.masks == "alpha", "--masks alpha needs --pairs"),
        (
            real and procedural_only,
            "--square, --flat, --detail and --outline-masks are for procedural pairs",
        ),
        (real and own, "--photos, --fonts and --artwork are for procedural pairs"),
        (chosen.vlm and not chosen.vlm_model, "--vlm needs --vlm-model"),
        (not 0 <= chosen.identity <= 1, f"--identity must be 0 to 1, got {chosen.identity}"),
        (
            chosen.size is not None and not 32 <= chosen.size <= 4096,
            f"--size must be 32 to 4096 px, got {chosen.size}",
        ),
    ]
    for conflict, message in conflicts:
        if conflict:
            raise ValueError(f"{message}.")


def _procedural_stages(chosen: argparse.Namespace, own: OwnFiles) -> tuple[BuildStage, ...]:
    from ..data.stages.procedural import (
        ProceduralDegrade,
        ProceduralMask,
        ProceduralPair,
        ProceduralSelect,
    )

    pair = ProceduralPair(
        chosen.size or 512, chosen.square, chosen.detail, chosen.held_out, chosen.flat, own
    )
    degrade: BuildStage = ProceduralDegrade(pair, chosen.identity)
    if chosen.degrade_workflow:
        degrade = _workflow_degrade(chosen)
    return (pair, ProceduralSelect(pair), ProceduralMask(pair, not chosen.outline_masks), degrade)


def _workflow(
    chosen: argparse.Namespace, file: str, known: dict[str, str], *needed: str
) -> CachedWorkflow:
    from ..data.comfyui import servers_of
    from ..data.stages.generated import CachedWorkflow
    from ..data.workflow import load_workflow

    workflow = load_workflow(Path(file), known, needed)
    servers = servers_of(chosen.comfyui, chosen.comfyui_timeout)
    return CachedWorkflow(workflow, servers, Path(chosen.out) / "work")


def _pair_stage(chosen: argparse.Namespace, pairs: tuple[PairFiles, ...]) -> BuildStage:
    from ..data.stages.file_pair import FilePair
    from ..data.stages.generated import PAIR_PLACEHOLDERS, WorkflowPair

    if chosen.pairs:
        origin = chosen.origin or f"folder {Path(chosen.pairs).name}"
        return FilePair(pairs, chosen.size, origin, chosen.licence)
    workflow = _workflow(chosen, chosen.pair_workflow, PAIR_PLACEHOLDERS, "reference")
    prompts = [""]
    if chosen.prompts:
        lines = Path(chosen.prompts).read_text(encoding="utf-8").splitlines()
        prompts = [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise ValueError(f"The prompts file {chosen.prompts} is empty.")
    origin = chosen.origin or f"workflow {Path(chosen.pair_workflow).name}"
    size = chosen.size or 1024
    return WorkflowPair(workflow, pairs, tuple(prompts), size, origin, chosen.licence)


def _verdict(chosen: argparse.Namespace) -> VlmVerdict | None:
    from ..data.stages.selection import VlmVerdict
    from ..scoring.vlm_client import VlmClient

    if not chosen.vlm:
        return None
    key = os.environ.get(chosen.vlm_key_env) if chosen.vlm_key_env else None
    if chosen.vlm_key_env and not key:
        raise ValueError(f"The environment variable {chosen.vlm_key_env} (--vlm-key-env) is empty.")
    client = VlmClient(chosen.vlm, chosen.vlm_model, key, timeout=120.0)
    return VlmVerdict(client, chosen.vlm_least)


def _select_stage(chosen: argparse.Namespace) -> ScoreSelect:
    from ..data.stages.selection import ScoreSelect, load_scorer

    load_scorer(chosen.scorer, chosen.scorer_weights)  # fails here rather than at every sample
    return ScoreSelect(
        scorer=chosen.scorer,
        weights=chosen.scorer_weights,
        min_distance=chosen.min_distance,
        max_distance=chosen.max_distance,
        min_side=chosen.min_side,
        min_sharpness=chosen.min_sharpness,
        verdict=_verdict(chosen),
    )


def _mask_stage(chosen: argparse.Namespace, pairs: tuple[PairFiles, ...]) -> BuildStage:
    from ..data.stages.mask_sources import AlphaMask, BoxMask, GivenMask, load_boxes

    if chosen.masks == "boxes":
        return BoxMask(load_boxes(_required(chosen.boxes, "--boxes")))
    return AlphaMask(pairs) if chosen.masks == "alpha" else GivenMask(pairs)


def _workflow_degrade(chosen: argparse.Namespace) -> BuildStage:
    from ..data.stages.generated import DEGRADE_PLACEHOLDERS, WorkflowDegrade

    workflow = _workflow(chosen, chosen.degrade_workflow, DEGRADE_PLACEHOLDERS, "target", "mask")
    return WorkflowDegrade(workflow, identity=chosen.identity)


def _degrade_stage(chosen: argparse.Namespace, pairs: tuple[PairFiles, ...]) -> BuildStage:
    from ..data.degrade import DEGRADATIONS
    from ..data.stages.degrading import GivenDraft, RegionDegrade

    if chosen.degrade_workflow:
        return _workflow_degrade(chosen)
    if chosen.given_drafts:
        return GivenDraft(pairs)
    return RegionDegrade(tuple(chosen.degradation or DEGRADATIONS), chosen.identity)
