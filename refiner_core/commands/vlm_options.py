"""The options that name a vision-language model, and its client."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..scoring.vlm_client import VlmClient


def add_vlm_options(group: Any) -> None:
    """Add the options of an endpoint."""
    group.add_argument(
        "--vlm",
        metavar="URL",
        help="OpenAI-compatible endpoint, http://HOST:PORT/v1; several, separated by commas, share the "
        "questions",
    )
    group.add_argument("--vlm-model", default="", metavar="NAME", help="name of the model at --vlm")
    group.add_argument("--vlm-key", metavar="VARIABLE", help="environment variable with the key")
    group.add_argument(
        "--vlm-timeout",
        type=float,
        default=60,
        metavar="SECONDS",
        help="how long to wait for a reply; default: %(default)s",
    )
    group.add_argument(
        "--vlm-retries",
        type=int,
        default=0,
        metavar="N",
        help="further attempts after a timeout or a busy server; default: %(default)s",
    )


def vlm_client(chosen: argparse.Namespace, cache: Path | None = None) -> VlmClient:
    """The client of the options.

    Raises:
        ValueError: no endpoint or model is named, or a value is out of range.
    """
    from ..scoring.vlm_client import VlmClient

    if chosen.vlm is None:
        raise ValueError("VLM: name an OpenAI-compatible endpoint with --vlm URL.")
    key = os.environ.get(chosen.vlm_key) if chosen.vlm_key else None
    return VlmClient(
        chosen.vlm,
        chosen.vlm_model,
        key,
        chosen.vlm_timeout,
        retries=chosen.vlm_retries,
        cache=cache,
    )
