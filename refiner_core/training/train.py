"""The course of a run of either stage: train, log, look, save, stop; go on where it stopped."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .config import GrpoConfig, RunSettings, SftConfig
from .distributed import Workers
from .grpo import GrpoTrainer
from .reward import make_reward
from .session import BEST, REFINER, Session, open_session
from .sft import SftTrainer

_LOG_EVERY = 10


def run_sft(config: SftConfig, data: Path, out: Path, device: str = "auto") -> Path:
    """Stage 1 from a folder of triplets to a refiner file; its path.

    Raises:
        ValueError, ModuleNotFoundError: settings, data or base that cannot be used.
        OSError: the disk is full; earlier checkpoints are kept.
    """
    session = open_session(config, data, out, device, pixels=False)
    return train_sft(config, session)


def train_sft(config: SftConfig, session: Session) -> Path:
    """Stage 1 on an open session."""
    trainer = SftTrainer(
        config, session.policy, session.trainable, session.views, session.text, session.recipe,
        session.workers,
    )  # fmt: skip
    found = session.resume("sft", trainer.optimizer)
    trainer.step = found["step"] if found else 0
    course = _Course(session, "sft", config.run, trainer.optimizer, trainer.step)
    return course.follow(trainer.train_step, dict)


def run_grpo(config: GrpoConfig, data: Path, out: Path, device: str = "auto") -> Path:
    """Stage 2 from a folder of triplets to a refiner file; its path.

    Raises:
        ValueError, ModuleNotFoundError: settings, data or base that cannot be used.
        OSError: the disk is full; earlier checkpoints are kept.
    """
    session = open_session(config, data, out, device, pixels=True)
    return train_grpo(config, session)


def train_grpo(config: GrpoConfig, session: Session) -> Path:
    """Stage 2 on an open session."""
    trainer = GrpoTrainer(
        config, session.policy, session.trainable, session.views, session.engine.codec,
        make_reward(config.objective, session.policy.device), session.text,
        lambda size: session.schedule(size, config.rollout.steps), session.recipe,
        session.workers,
    )  # fmt: skip
    found = session.resume("grpo", trainer.optimizer)
    if found:
        trainer.epoch, trainer.updates = found["step"], found["updates"]
    patience = Patience(config.objective.patience, found)
    course = _Course(session, "grpo", config.run, trainer.optimizer, trainer.epoch, patience)
    return course.follow(
        trainer.step, lambda: {"updates": trainer.updates, **patience.facts()}, every=1
    )


class Interruption:
    """Ctrl+C lets the step in hand end, so that what is saved is the state between two steps; a
    second one ends at once, and the last checkpoint is what is left.

    Outside the main thread, where there are no signals, nothing is changed.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers, self._wanted, self._before = workers, False, None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        if self._wanted:
            raise KeyboardInterrupt
        self._wanted = True
        self._workers.say("stopping after this step; Ctrl+C again: at once, to the last checkpoint")

    def asked(self) -> bool:
        """Whether to stop now: all processes get the same answer."""
        return self._workers.sum(float(self._wanted)) > 0


class Patience:
    """Stops a run whose held-out SSIM, which is no part of the reward, no longer rises."""

    def __init__(self, limit: int, found: dict[str, float] | None) -> None:
        self.limit = limit
        # A run that had no patience until now has no best look to be compared with.
        known = found if limit and found and "best" in found else {"best": -1.0, "failures": 0}
        self.best, self.failures = float(known["best"]), int(known["failures"])

    @property
    def spent(self) -> bool:
        return self.limit > 0 and self.failures >= self.limit

    def see(self, figures: dict[str, float]) -> bool:
        """Count a look; whether it is the best so far."""
        value = figures["held_out/ssim"]
        better = value > self.best
        self.failures = 0 if better else self.failures + 1
        self.best = max(self.best, value)
        return better

    def facts(self) -> dict[str, float]:
        return {"best": self.best, "failures": self.failures} if self.limit else {}


class _Course:
    """One run: its progress bar, the log's rows, the looks at held-out cases, the checkpoints."""

    def __init__(
        self, session: Session, kind: str, run: RunSettings, optimizer: torch.optim.Optimizer,
        done: int, patience: Patience | None = None,
    ) -> None:  # fmt: skip
        from tqdm.auto import tqdm

        self.session, self.kind, self.run, self.optimizer = session, kind, run, optimizer
        self.done, self.patience = done, patience or Patience(0, None)
        self.figures: dict[str, float] = {}
        self._announce()
        self.bar = tqdm(
            total=run.max_steps, initial=done, desc=kind, disable=not session.workers.main,
            unit="step",
        )  # fmt: skip
        self._sums: dict[str, float] = {}
        self._count = 0
        self._begun = time.perf_counter()

    def follow(
        self, step: Callable[[], dict[str, float]], facts: Callable[[], dict[str, Any]],
        every: int = _LOG_EVERY,
    ) -> Path:  # fmt: skip
        """Step to the end or until patience is spent; the refiner's path.

        Args:
            step: trains, and returns figures.
            facts: what to keep in a checkpoint beside the number of steps.
            every: steps to a row of the log.
        """
        try:
            if self.done == 0:
                self._look(last=False)
            with Interruption(self.session.workers) as interruption:
                while self.done < self.run.max_steps and not self.patience.spent:
                    figures = step()
                    self.done += 1
                    self._count_in(figures, every)
                    last = self.done == self.run.max_steps
                    stop = interruption.asked()
                    self._look(last)
                    if (
                        last or stop or self.patience.spent
                        or self.done % self.run.save_every == 0
                    ):  # fmt: skip
                        self._save(facts)
                    if stop:
                        raise KeyboardInterrupt
        finally:
            self.bar.close()
            self.session.journal.close()
        made, best = self.session.out / REFINER, self.session.out / BEST
        if self.patience.spent:
            self.session.workers.say(
                f"stopped early: held-out SSIM has not risen for {self.patience.failures} looks"
            )
            made = best if best.exists() else made
        self.session.workers.close()
        return made

    def _announce(self) -> None:
        session, workers = self.session, self.session.workers
        rank = session.trainable.rank
        kind = "all weights" if rank is None else f"LoRA r{rank}"
        again = f", from step {self.done} on" if self.done else ""
        processes = f"{workers.count} processes"
        if workers.sharding:
            part = workers.sharding.part(session.engine.model)
            processes += f" with {part:.0%} of the base each ({workers.sharding})"
        workers.say(
            f"{session.recipe.name}: {kind}, {len(session.trainable) / 1e6:.2f} M parameters, "
            f"{len(session.views)} views, {len(session.held_out)} held out, {processes}, to step "
            f"{self.run.max_steps}{again}"
        )

    def _save(self, facts: Callable[[], dict[str, Any]]) -> None:
        self.session.save(
            self.kind, self.done, self.optimizer, {"figures": self.figures, **facts()}
        )

    def _count_in(self, row: dict[str, float], every: int) -> None:
        """Every few steps become a row of means."""
        self._count += 1
        for key, value in row.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self.bar.update(1)
        if self.done % every == 0 or self.done == self.run.max_steps:
            means = {k: v / self._count for k, v in self._sums.items()}
            self.figures |= {k: means[k] for k in means if k == "loss" or k.startswith("reward/")}
            seconds = time.perf_counter() - self._begun
            self.session.journal.row(self.done, {**means, "seconds": round(seconds, 2)})
            self.bar.set_postfix({k: f"{v:.4g}" for k, v in list(means.items())[:2]})
            self._sums, self._count = {}, 0

    def _look(self, last: bool) -> None:
        """Figures and a picture of the held-out cases, if there are any and it is time."""
        session, every = self.session, self.run.sample_every
        if not every or not len(session.held_out) or (self.done % every and not last):
            return
        found, picture = session.look("ema" if "ema" in session.trainable.copies else None)
        # Cards round differently; all processes have to agree on when to stop.
        found = {k: session.workers.mean(v) for k, v in found.items()}
        self.figures |= {f"held_out/{k}": v for k, v in found.items()}
        session.journal.row(self.done, {f"held_out/{k}": v for k, v in found.items()})
        session.journal.picture(self.done, "held-out", picture)
        session.workers.say(
            f"step {self.done}: held out " + ", ".join(f"{k} {v:.4f}" for k, v in found.items())
        )
        if self.patience.see(self.figures) and self.patience.limit:
            session.keep_best(self.kind, self.done, self.figures)
