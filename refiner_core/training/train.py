"""The course of a run: train, log, validate, save, stop, and continue where it stopped."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

import numpy as np

from .config import RunConfig, RunSettings
from .dataset import Reward
from .distributed import Processes
from .dpo import DpoObjective
from .grpo import GrpoObjective
from .nft import NftObjective
from .objective import Learner, Objective
from .session import BEST, REFINER, Session
from .sft import SftObjective
from .trainer import Trainer
from .unrolled import UnrolledObjective

_OBJECTIVES: dict[str, Any] = {
    "sft": SftObjective,
    "grpo": GrpoObjective,
    "nft": NftObjective,
    "reward": UnrolledObjective,
    "dpo": DpoObjective,
}


def train(
    config: RunConfig,
    session: Session,
    reward: Reward | None = None,
    progress: Progress | None = None,
    interruption: Interruption | None = None,
) -> Path:
    """Train on an open session; the path of the refiner.

    Args:
        reward: what reinforcement and learning through the reward maximize.
        progress: where progress is shown; None: a bar in the terminal.
        interruption: what can stop the run; None: Ctrl+C.

    Raises:
        ValueError: a checkpoint that does not belong to the run, or nothing but errors in training.
        OSError: the disk is full; earlier checkpoints are kept.
    """
    objective = make_objective(config, session, reward)
    trainer = Trainer(
        objective, session.trainable, config.optimizer, config.run.max_steps, session.processes
    )
    saved = session.resume(trainer.optimizer)
    if saved:
        trainer.step = saved["step"]
        trainer.updates = saved.get("updates", saved["step"])
        objective.restore(saved.get("objective", {}))
    run = Run(session, trainer, config.run, Patience(config.patience, saved))
    return run.follow(
        progress or ProgressBar(config.kind, session.processes.main),
        interruption or Interruption(session.processes),
    )


def make_objective(config: RunConfig, learner: Learner, reward: Reward | None = None) -> Objective:
    """The objective of the settings; some need a reward (see `make_reward`).

    Raises:
        ValueError: the work cannot be split evenly over the processes.
    """
    make = _OBJECTIVES[config.algorithm]
    if not config.needs_pixels:
        return make(config, learner)
    assert reward is not None, f"train {config.kind} maximizes a reward"
    return make(config, learner, reward)


class Progress(Protocol):
    """Shows how far a run is."""

    def start(self, done: int, total: int) -> None: ...
    def advance(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def picture(self, pixels: np.ndarray) -> None: ...
    def close(self) -> None: ...


class ProgressBar:
    """A bar in the terminal."""

    def __init__(self, name: str, active: bool) -> None:
        self._name, self._active = name, active
        self._bar: Any = None

    def start(self, done: int, total: int) -> None:
        """Show the bar."""
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=total, initial=done, desc=self._name, disable=not self._active, unit="step"
        )

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar by one step; `metrics` are shown when there are new ones."""
        self._bar.update(1)
        if metrics:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in list(metrics.items())[:2]})

    def picture(self, pixels: np.ndarray) -> None:
        """A terminal shows no pictures."""

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class Interruption:
    """Ctrl+C lets the current step finish, so that a state between two steps is saved; a second one
    stops at once, and the last checkpoint remains.

    Outside the main thread, where there are no signals, nothing changes.
    """

    raised: ClassVar[tuple[type[BaseException], ...]] = ()
    """What the network itself may raise to stop, before the update of a step is applied."""

    def __init__(self, processes: Processes) -> None:
        self._processes, self._wanted, self._before = processes, False, None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, *_: object) -> None:
        if self._wanted:
            raise KeyboardInterrupt
        self._wanted = True
        self._processes.log(
            "Stopping after this step. Press Ctrl+C again to stop at once; the last checkpoint remains."
        )

    def requested(self) -> bool:
        """Whether to stop now; all processes get the same answer."""
        return self._processes.sum(float(self._wanted)) > 0

    def stop(self) -> NoReturn:
        """Raise the exception that ends the run."""
        raise KeyboardInterrupt


class Patience:
    """Stops a run when the held-out SSIM, which is not part of the reward, no longer rises."""

    def __init__(self, limit: int, saved: Mapping[str, Any] | None) -> None:
        self.limit = limit
        # A run that had no patience until now has no best validation to compare with.
        known = saved if limit and saved and "best" in saved else {"best": -1.0, "failures": 0}
        self.best, self.failures = float(known["best"]), int(known["failures"])

    @property
    def spent(self) -> bool:
        return self.limit > 0 and self.failures >= self.limit

    def see(self, metrics: Mapping[str, float]) -> bool:
        """Count a validation; whether it is the best so far."""
        value = metrics["held_out/ssim"]
        better = value > self.best
        self.failures = 0 if better else self.failures + 1
        self.best = max(self.best, value)
        return better

    def facts(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"best": self.best, "failures": self.failures} if self.limit else {}


class Run:
    """The steps of a run with their log, validations and checkpoints."""

    def __init__(
        self, session: Session, trainer: Trainer, settings: RunSettings, patience: Patience
    ) -> None:
        self.session, self.trainer, self.settings = session, trainer, settings
        self.patience = patience
        self.metrics: dict[str, float] = {}  # the latest ones, for the metadata
        self._sums: dict[str, float] = {}
        self._count = 0
        self._start = time.perf_counter()

    def follow(self, progress: Progress, interruption: Interruption) -> Path:
        """Train to the end or until patience is spent; the path of the refiner."""
        session, trainer, total = self.session, self.trainer, self.settings.max_steps
        self._announce()
        progress.start(trainer.step, total)
        try:
            if trainer.step == 0:
                self._validate(progress)
            with interruption:
                while trainer.step < total and not self.patience.spent:
                    self._step(progress, interruption)
        except interruption.raised:
            self._save()
            raise
        finally:
            progress.close()
            session.tracker.close()
        return self._finish()

    def _step(self, progress: Progress, interruption: Interruption) -> None:
        row = self._log(self.trainer.train_step())
        progress.advance(self.trainer.step, row)
        stop = interruption.requested()
        self._validate(progress)
        if stop or self._is_time_to_save():
            self._save()
        if stop:
            interruption.stop()

    def _save(self) -> None:
        self.session.save(self.trainer.step, self.trainer.optimizer, self._facts())

    def _finish(self) -> Path:
        session = self.session
        refiner, best = session.out / REFINER, session.out / BEST
        if self.patience.spent:
            session.processes.log(
                f"Stopped early: the held-out SSIM has not risen for {self.patience.failures} "
                "validations."
            )
            refiner = best if best.exists() else refiner
        session.processes.close()
        return refiner

    def _announce(self) -> None:
        session, processes, trainable = self.session, self.session.processes, self.session.trainable
        kind = "all weights" if trainable.rank is None else f"LoRA of rank {trainable.rank}"
        resumed = f", resumed at step {self.trainer.step}" if self.trainer.step else ""
        count = "1 process" if processes.count == 1 else f"{processes.count} processes"
        steps = "1 step" if self.settings.max_steps == 1 else f"{self.settings.max_steps} steps"
        if processes.sharding:
            count += f" with {session.base_share:.0%} of the base each ({processes.sharding})"
        processes.log(
            f"{session.recipe.name}: {kind}, {len(trainable) / 1e6:.2f} M trainable parameters, "
            f"{len(session.dataset)} items, {len(session.held_out)} held out, {count}, "
            f"{steps}{resumed}"
        )

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights and the step."""
        updates = {"updates": self.trainer.updates, "figures": self.metrics}
        state = self.trainer.objective.state()
        return {**updates, **({"objective": state} if state else {}), **self.patience.facts()}

    def _is_time_to_save(self) -> bool:
        step = self.trainer.step
        last = step == self.settings.max_steps
        return last or self.patience.spent or step % self.settings.save_every == 0

    def _log(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Add the metrics of a step to the current row; the row, once it is complete and written."""
        step = self.trainer.step
        self._count += 1
        for key, value in metrics.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        if step % self.trainer.objective.log_every and step != self.settings.max_steps:
            return {}
        row = {k: v / self._count for k, v in self._sums.items()}
        self.metrics |= {k: v for k, v in row.items() if k == "loss" or k.startswith("reward/")}
        seconds = round(time.perf_counter() - self._start, 2)
        self.session.tracker.row(step, {**row, "seconds": seconds})
        self._sums, self._count = {}, 0
        return row

    def _validate(self, progress: Progress) -> None:
        """Metrics and a picture of the held-out items, if there are any and it is time."""
        session, every, step = self.session, self.settings.validate_every, self.trainer.step
        last = step == self.settings.max_steps
        if not every or not len(session.held_out) or (step % every and not last):
            return
        found, picture = session.validate()
        # Devices round differently, but all processes must agree on when to stop.
        found = {k: session.processes.mean(v) for k, v in found.items()}
        row = {f"held_out/{k}": v for k, v in found.items()}
        self.metrics |= row
        session.tracker.row(step, row)
        session.tracker.picture(step, "held-out", picture)
        progress.picture(picture)
        session.processes.log(
            f"step {step}: held out " + ", ".join(f"{k} {v:.4f}" for k, v in found.items())
        )
        if self.patience.see(self.metrics) and self.patience.limit:
            session.save_best(step, self.metrics)
