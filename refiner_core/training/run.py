"""The training commands' courses: train, log, look, save, stop; and go on where a run stopped."""

from __future__ import annotations

import time
from pathlib import Path

from .config import GrpoConfig, SftConfig
from .grpo import GrpoTrainer
from .reward import make_reward
from .session import REFINER, Session, open_session
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
    course = _Course(session, "sft", config.run.max_steps, trainer.step)

    def save() -> None:
        session.save("sft", trainer.step, trainer.optimizer, {"figures": course.figures})

    _announce(session, config.run.max_steps, trainer.step)
    if trainer.step == 0:
        course.look(0, config.run.sample_every)
    try:
        while trainer.step < config.run.max_steps:
            course.count(trainer.step + 1, trainer.train_step())
            last = trainer.step == config.run.max_steps
            course.look(trainer.step, config.run.sample_every, last)
            if last or trainer.step % config.run.save_every == 0:
                save()
    except KeyboardInterrupt:
        save()
        raise
    finally:
        course.close()
    return session.out / REFINER


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
    patience = _Patience(config.objective.patience, found)
    course = _Course(session, "grpo", config.run.max_steps, trainer.epoch)

    def save() -> None:
        extra = {"updates": trainer.updates, "figures": course.figures, **patience.facts()}
        session.save("grpo", trainer.epoch, trainer.optimizer, extra)

    _announce(session, config.run.max_steps, trainer.epoch)
    if trainer.epoch == 0:
        course.look(0, config.run.sample_every)
        patience.see(course.figures)
    try:
        while trainer.epoch < config.run.max_steps and not patience.spent:
            course.count(trainer.epoch + 1, trainer.step(), every=1)
            last = trainer.epoch == config.run.max_steps
            if course.look(trainer.epoch, config.run.sample_every, last):
                patience.see(course.figures)
            if last or patience.spent or trainer.epoch % config.run.save_every == 0:
                save()
    except KeyboardInterrupt:
        save()
        raise
    finally:
        course.close()
    if patience.spent:
        session.workers.say(f"stopped early: held-out SSIM fell {patience.failures} times in a row")
    return session.out / REFINER


class _Patience:
    """Stops a run whose held-out SSIM, which is no part of the reward, no longer rises."""

    def __init__(self, limit: int, found: dict[str, float] | None) -> None:
        self.limit = limit
        self.best = float(found["best"]) if found else -1.0
        self.failures = int(found["failures"]) if found else 0

    @property
    def spent(self) -> bool:
        return self.limit > 0 and self.failures >= self.limit

    def see(self, figures: dict[str, float]) -> None:
        value = figures.get("held_out/ssim")
        if value is None:
            return
        self.failures = 0 if value > self.best else self.failures + 1
        self.best = max(self.best, value)

    def facts(self) -> dict[str, float]:
        return {"best": self.best, "failures": self.failures}


def _announce(session: Session, steps: int, done: int) -> None:
    learning = len(session.trainable)
    kind = "all weights" if session.trainable.rank is None else f"LoRA r{session.trainable.rank}"
    again = f", from step {done} on" if done else ""
    processes = f"{session.workers.count} processes"
    if session.workers.sharding:
        part = session.workers.sharding.part(session.engine.model)
        processes += f" with {part:.0%} of the base each ({session.workers.sharding})"
    session.workers.say(
        f"{session.recipe.name}: {kind}, {learning / 1e6:.2f} M parameters, {len(session.views)} views, "
        f"{len(session.held_out)} held out, {processes}, to step {steps}{again}"
    )


class _Course:
    """The progress bar, the log's rows and the looks at held-out cases of one run."""

    def __init__(self, session: Session, kind: str, steps: int, done: int) -> None:
        from tqdm.auto import tqdm

        self.session, self.figures = session, {}
        self.bar = tqdm(
            total=steps, initial=done, desc=kind, disable=not session.workers.main, unit="step"
        )
        self._sums: dict[str, float] = {}
        self._count = 0
        self._begun = time.perf_counter()

    def count(self, step: int, row: dict[str, float], every: int = _LOG_EVERY) -> None:
        """A step is done; every few of them become a row of means."""
        self._count += 1
        for key, value in row.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self.bar.update(1)
        if step % every == 0 or step == self.bar.total:
            means = {k: v / self._count for k, v in self._sums.items()}
            self.figures |= {k: means[k] for k in means if k == "loss" or k.startswith("reward/")}
            seconds = time.perf_counter() - self._begun
            self.session.journal.row(step, {**means, "seconds": round(seconds, 2)})
            self.bar.set_postfix({k: f"{v:.4g}" for k, v in list(means.items())[:2]})
            self._sums, self._count = {}, 0

    def look(self, step: int, every: int, always: bool = False) -> bool:
        """Figures and a picture of the held-out cases, if it is time; whether it was."""
        session = self.session
        if not every or not len(session.held_out) or (step % every and not always):
            return False
        role = "ema" if "ema" in session.trainable.copies else None
        found, picture = session.look(role)
        self.figures |= {f"held_out/{k}": v for k, v in found.items()}
        session.journal.row(step, {f"held_out/{k}": v for k, v in found.items()})
        session.journal.picture(step, "held-out", picture)
        session.workers.say(
            f"step {step}: held out " + ", ".join(f"{k} {v:.4f}" for k, v in found.items())
        )
        return True

    def close(self) -> None:
        self.bar.close()
        self.session.journal.close()
