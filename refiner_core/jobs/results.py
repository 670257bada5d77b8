"""The folder that jobs write to: what is done already, and what is written.

A job's results are ID.png and, written just before it, the report ID.json, which says what the job
was. Both are written completely or not at all, so a killed run loses only the jobs it was working on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..images.image_io import Picture, save_picture
from ..storage.output_files import write_text
from .job_list import SUMMARY_ID, Job

SUMMARY = f"{SUMMARY_ID}.json"


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file completely or not at all."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False))


@dataclass(frozen=True)
class Results:
    """The results in a folder."""

    out: Path
    model: Mapping[str, Any]
    """Arguments of `load_engine`."""

    def picture(self, job: Job) -> Path:
        """The file with the job's repaired picture."""
        return self.out / f"{job.id}.png"

    def report(self, job: Job) -> Path:
        """The file with the job's report."""
        return self.out / f"{job.id}.json"

    def write(self, job: Job, picture: Picture, report: Mapping[str, Any]) -> None:
        """Write the results of a job; earlier ones are replaced."""
        for left in self.out.glob(f".{job.id}.*.png"):  # of a run that was killed while writing
            left.unlink(missing_ok=True)
        # Only a picture says that the job is done: it must not stand beside another job's report.
        self.picture(job).unlink(missing_ok=True)
        said = {**report, "draft_file": str(job.files.draft), "job": self._described(job)}
        write_json(self.report(job), said)
        save_picture(picture, self.picture(job))

    def todo(self, jobs: Sequence[Job], overwrite: bool) -> list[Job]:
        """The jobs that are not done.

        Raises:
            ValueError: a picture of another job is in the way and is not to be overwritten.
        """
        todo: list[Job] = []
        for job in jobs:
            if not self.picture(job).exists():
                todo.append(job)
                continue
            reason = self._in_the_way(job)
            if reason is None:
                continue
            if not overwrite:
                raise ValueError(
                    f"{self.picture(job)} {reason}. Use another --out, or --overwrite to replace "
                    "such pictures."
                )
            todo.append(job)
        return todo

    def _described(self, job: Job) -> dict[str, Any]:
        refiner = {k: str(v) for k, v in self.model.items() if v is not None and k != "device"}
        return json.loads(json.dumps({**job.described(), "refiner": refiner}))

    def _in_the_way(self, job: Job) -> str | None:
        """Why the picture that is there is not the job's; None if it is."""
        try:
            before = json.loads(self.report(job).read_text(encoding="utf-8"))["job"]
        except (OSError, ValueError, KeyError, TypeError):
            return "exists already and has no report of this job"
        for kind, values in self._described(job).items():
            for name, value in values.items():
                old = before.get(kind, {}).get(name)
                if old != value:
                    return f"was made with {name} {old}, now it is {value}"
        made = self.report(job).stat().st_mtime
        for path in (*job.files.paths, *_weights(self.model)):
            if path.exists() and path.stat().st_mtime > made:
                return f"is older than {path}"
        return None


def _weights(model: Mapping[str, Any]) -> list[Path]:
    """The user's files of a refiner and its LoRAs."""
    files = [Path(str(model["refiner"])).expanduser()]
    files += [Path(str(lora).rpartition(":")[0] or lora) for lora in model.get("loras", ())]
    return [f for f in files if f.is_file()]
