"""The settings of supervised training and of reinforcement learning, and their presets.

Where the paper is silent (ranks, learning rates, group sizes) the values follow public recipes for
FLUX.1-Kontext: Flow-GRPO, DanceGRPO, Flow-Factory, diffusers' and ai-toolkit's LoRA trainers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from ..scoring.vlm_answers import Form
from .advantages import Combine, Spread
from .losses import Guard
from .settings import Group, check_range, option, section
from .timestep_sampling import TimestepSampling
from .tracker import Board

Quantize = Literal["none", "int8", "fp8", "nf4"]
Role = Literal["old", "ref"]


class Algorithm(NamedTuple):
    """What the settings of stage 2 depend on."""

    samples_stochastically: bool  # has probability ratios, and siblings that differ from one start
    kl: float  # default weight of the divergence
    kl_to: Role  # default copy of the weights that it is measured from


ALGORITHMS = {"grpo": Algorithm(True, 0.01, "old"), "nft": Algorithm(False, 2e-5, "ref")}


@dataclass(frozen=True)
class StepCost:
    """What a step of a run costs, in forward passes of one sample.

    `plain` are those without a gradient, `learnt` those that are backpropagated, and `stored` is how
    many of the latter are kept at the same time for each sample of a micro-batch. `copies` of the
    trainable weights are kept beside the moving average, and with `decoded` the decoder's activations.
    """

    plain: float
    learnt: float
    stored: int = 1
    copies: int = 0
    decoded: bool = False


class RunConfig(ABC):
    """The settings of a run, whatever its objective."""

    kind: ClassVar[str]
    needs_pixels: ClassVar[bool] = False  # of the training items, for rewards
    data_form: ClassVar[str] = "triplets"  # or "preferences"
    model: ModelSettings
    data: DataSettings
    optimizer: OptimizerSettings
    run: RunSettings

    @property
    def algorithm(self) -> str:
        """Name of the objective."""
        return self.kind

    @property
    def sampler_steps(self) -> int | None:
        """Steps of a sample that is learnt from; None: those of the recipe."""
        return None

    @property
    def patience(self) -> int:
        """Validations without a gain after which the run stops; 0: never."""
        return 0

    @abstractmethod
    def cost(self, steps: int) -> StepCost:
        """What a step of the run costs, if each sample that is learnt from takes that many steps."""

    def check_processes(self, count: int) -> None:
        """Raise ValueError if the work cannot be split evenly over that many processes: here the batch,
        over processes and micro-batches.
        """
        if self.run.batch % (self.run.micro_batch * count):
            raise ValueError(
                f"run.batch = {self.run.batch} is not a multiple of run.micro_batch = "
                f"{self.run.micro_batch} times {count} processes."
            )

    def check_patience(self) -> None:
        """Raise ValueError if patience would wait for validations that never come."""
        every, held_out = self.run.validate_every, self.data.held_out
        if self.patience and not (every and held_out):
            raise ValueError(
                f"objective.patience = {self.patience} counts validations, but there are none with "
                f"run.validate_every = {every} and data.held_out = {held_out}. Set both above 0, or "
                "patience to 0."
            )


@dataclass(frozen=True)
class ModelSettings(Group):
    """What is trained."""

    base: str = option("nano", '"nano", a FLUX.1-Kontext file, or a diffusers folder.')
    recipe: str | None = option(None, "Recipe to train for; empty: that of the base.")
    attention: Literal["recipe", "both ways", "one way"] = option(
        "recipe",
        'Attention between clean and noisy tokens; with "one way" the references are computed only '
        "once per image.",
    )
    clip_l: str | None = option(
        None, "CLIP text encoder file; empty: looked for in the folder of the base."
    )
    t5: str | None = option(
        None, "T5 text encoder file; empty: looked for in the folder of the base."
    )
    vae: str | None = option(None, "Autoencoder file; empty: looked for in the folder of the base.")
    tokenizers: str | None = option(
        None, "Folder of the tokenizers; empty: looked for in the usual places."
    )
    train: Literal["lora", "full"] = option(
        "lora", 'Train a LoRA, or with "full" all weights (for small models).'
    )
    lora: str | None = option(
        None, "LoRA file to continue from; its rank then replaces model.rank."
    )
    rank: int = option(16, "Rank of the LoRA.", 1, 1024)
    alpha: float = option(16.0, "The LoRA is scaled by alpha / rank.", 1e-3, 1e4)
    quantize: Quantize = option("none", "Storage of the frozen base.")
    checkpointing: bool = option(False, "Gradient checkpointing: less memory, a third more time.")
    precision: Literal["fp32", "bf16"] = option("fp32", "Precision of the network's arithmetic.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train == "full" and self.lora:
            raise ValueError(
                "model.train = 'full' cannot be combined with model.lora: merge the LoRA into the "
                "base first (omnirefiner merge)."
            )
        if self.train == "full" and self.quantize != "none":
            raise ValueError(
                f"model.quantize = {self.quantize!r} freezes the base, so it cannot be combined with "
                "model.train = 'full'. Change one of them."
            )

    def check_shardable(self) -> None:
        """Raise ValueError for a base that cannot be sharded: one that is trained or quantized."""
        for name, value, fix in (
            ("train", self.train, "lora"),
            ("quantize", self.quantize, "none"),
        ):
            if value != fix:
                raise ValueError(
                    f"model.{name} = {value!r} cannot be combined with FSDP or DeepSpeed, which shard "
                    f"a plain frozen base here. Set model.{name} = {fix!r}, or launch with "
                    "--multi_gpu."
                )


@dataclass(frozen=True)
class DataSettings(Group):
    """How triplets become training items."""

    megapixels: float | None = option(
        None, "Area of the crops in megapixels; empty: that of the recipe."
    )
    crops: int = option(1, "Different crops of each triplet.", 1, 64)
    context: tuple[float, float] = option(
        (1.2, 3.0), "Size of a crop relative to its region, drawn between these two values."
    )
    flip: bool = option(False, "Mirror half of the references (not for lettering).")
    jitter: float = option(
        0.0, "Standard deviation of the random log-gain of the reference's colors.", 0, 0.5
    )
    dilate: int = option(1, "Dilation of the region in the loss, in latent pixels.", 0, 16)
    held_out: int = option(16, "Triplets held out for validation.", 0, 4096)
    least_agreement: float | None = option(
        None,
        "Leave out crops whose aligned reference agrees less with the target than this once both are "
        "blurred, PSNR in dB; empty: keep all.",
    )
    least_gain: float | None = option(
        None,
        "Leave out crops whose aligned reference is not closer to the target than the draft is by "
        "this much, in dB; empty: keep all.",
    )
    variants: int = option(
        1,
        "Versions of each crop: one unchanged, the others mirrored, transposed and recolored alike in "
        "all pictures and with another share of the aligned reference.",
        1,
        256,
    )
    workers: int = option(
        1, "Worker processes that cut crops, which is slow where references are aligned.", 1, 256
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("data.context", min(self.context), 1, 20)
        if self.context[0] > self.context[1]:
            raise ValueError(
                f"data.context needs the smaller value first, got {list(self.context)}."
            )


@dataclass(frozen=True)
class LossSettings(Group):
    """The masked flow-matching loss."""

    region: float = option(1.0, "Weight of the mean error inside the region.", 0, 1e4)
    background: float = option(1.0, "Weight of the mean error outside the region.", 0, 1e4)
    masked: bool = option(
        True, "Use the masked loss; false: the plain mean over the crop, for comparisons."
    )
    root: bool = option(
        False, "Take the root of each sample's loss, so that few hopeless samples do not dominate."
    )
    timesteps: TimestepSampling = option("logit_normal", "Distribution of the noise levels.")
    mean: float = option(0.0, "Mean of the normal distribution under the logit-normal.")
    std: float = option(1.0, "Standard deviation of that normal distribution.", 0, 10)
    uniform: float = option(0.2, "Share of noise levels drawn uniformly from (0, 1].", 0, 1)
    shift: bool = option(
        True, "Shift the noise levels as the recipe's schedule does for the size of the crop."
    )
    guidance: float = option(
        1.0, "Value of the guidance embedding during training, if the model has one."
    )
    caption_dropout: float = option(0.1, "Share of samples trained without a prompt.", 0, 1)
    reference_dropout: float = option(
        0.05, "Share of updates trained without reference tokens.", 0, 1
    )
    contrast: float = option(
        0.0,
        "Weight of the contrast: the own reference must explain the target better than the references "
        "of other items of the batch do (SoftREPA, which learns text tokens by it); 0: off.",
        0,
        1e4,
    )
    contrast_others: int = option(
        2, "Other items whose references are compared, if the batch has as many.", 1, 64
    )
    contrast_temperature: float = option(
        0.07, "Temperature of the errors in the contrast; published 0.07, learned.", 1e-4, 1e4
    )
    contrast_scale: float = option(
        4.0, "Scale of the logits in the contrast; published 4, learned.", 1e-3, 1e4
    )

    @property
    def passes(self) -> int:
        """Forward passes of each item: one with each reference."""
        return 1 + (self.contrast_others if self.contrast else 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masked and self.region + self.background == 0:
            raise ValueError(
                "loss.region and loss.background are both 0, so there is nothing to train on."
            )


@dataclass(frozen=True)
class OptimizerSettings(Group):
    """AdamW and the moving average of the weights."""

    rate: float = option(1e-4, "Learning rate.", 0, 1)
    weight_decay: float = option(1e-4, "Decoupled weight decay.", 0, 10)
    beta2: float = option(0.999, "Decay of the second moment.", 0, 0.999999)
    clip: float = option(1.0, "Largest norm of a gradient; larger ones are scaled down.", 1e-6, 1e6)
    warmup: int = option(0, "Updates over which the learning rate rises from 0.", 0, 10**9)
    schedule: Literal["constant", "cosine"] = option(
        "constant", "Learning rate after the warm-up; cosine falls to 0 at max_steps."
    )
    eight_bit: bool = option(False, "8-bit optimizer state (needs bitsandbytes).")
    ema: float = option(
        0.0, "Decay of the exponential moving average that is saved; 0: no average.", 0, 1
    )
    ema_every: int = option(1, "Updates between two steps of the average.", 1, 1 << 20)


@dataclass(frozen=True)
class RunSettings(Group):
    """The course of a run."""

    max_steps: int = option(3000, "Steps in total: updates, in stage 2 epochs.", 1, 10**9)
    batch: int = option(4, "Samples per update over all processes (stage 1).", 1, 1 << 20)
    micro_batch: int = option(1, "Samples in one forward pass.", 1, 1 << 20)
    seed: int = option(0, "Seed of everything random.", 0, 2**31 - 1)
    save_every: int = option(250, "Steps between checkpoints.", 1, 10**9)
    validate_every: int = option(250, "Steps between validations; 0: none.", 0, 10**9)
    board: Board = option("none", "Dashboard that gets the curves in addition to log.jsonl.")


@dataclass(frozen=True)
class SftConfig(RunConfig):
    """Stage 1: supervised fine-tuning."""

    kind: ClassVar[str] = "sft"

    model: ModelSettings = section(ModelSettings)
    data: DataSettings = section(DataSettings)
    loss: LossSettings = section(LossSettings)
    optimizer: OptimizerSettings = section(OptimizerSettings)
    run: RunSettings = section(RunSettings)

    def cost(self, steps: int) -> StepCost:
        """See `RunConfig.cost`."""
        seen = self.loss.passes
        return StepCost(plain=0, learnt=self.run.batch * seen, stored=seen)


@dataclass(frozen=True)
class RolloutSettings(Group):
    """How samples are drawn."""

    groups: int = option(24, "Groups per epoch over all processes, one item each.", 1, 1 << 16)
    group: int = option(12, "Samples per group.", 2, 4096)
    steps: int | None = option(10, "Sampler steps; empty: those of the recipe.")
    kind: Literal["flow", "dance", "cps"] = option("flow", "Kind of the stochastic steps.")
    eta: float = option(
        0.7,
        "Noise of the stochastic steps. Published: flow 0.7 to 0.9 (Flow-GRPO), dance 0.3 (DanceGRPO), "
        "cps 0.8 (Flow-GRPO-Fast) or 1 (RLCM); cps allows up to 1.",
        1e-3,
        2,
    )
    eta_end: float | None = option(
        None,
        "Noise of the last stochastic step; it changes linearly from eta to this over the window "
        "(HiCoGen: falling); empty: eta.",
        1e-3,
        2,
    )
    window: int = option(
        2,
        "Stochastic steps, placed in the first half of the schedule, into which they must fit; all "
        "others are deterministic.",
        1,
        1000,
    )
    window_every: int = option(
        0,
        "Epochs after which the window moves on by one step, from the first to the end of the first half "
        "and again (MixGRPO: 25); 0: a random place for each group.",
        0,
        10**6,
    )
    guidance: float | None = option(
        2.5, "Value of the guidance embedding; empty: that of the recipe."
    )
    same_noise: bool = option(False, "Start all samples of a group from the same noise.")
    group_mean: bool = option(
        False,
        "Also score the mean of a group's samples and learn from it at the noise of each sample "
        "(nft); false: learn from the samples at fresh noise.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "cps":
            check_range("rollout.eta", self.eta, 1e-3, 1)
            check_range("rollout.eta_end", self.eta_end or self.eta, 1e-3, 1)
        if self.steps is not None and self.steps < 2:
            raise ValueError(
                f"rollout.steps must be at least 2, got {self.steps}: the last step is never "
                "stochastic."
            )
        if self.eta_end is not None and self.window == 1:
            raise ValueError(
                f"rollout.eta_end = {self.eta_end:g} is the noise of the last of several stochastic steps, "
                "but rollout.window = 1. Make the window longer, or leave eta_end empty."
            )

    def check_window(self, steps: int) -> None:
        """Raise ValueError for a window that does not fit into the first half of `steps` sampler
        steps, or that is to move and cannot.
        """
        half = max(1, steps // 2)
        if self.window > half:
            raise ValueError(
                f"rollout.window = {self.window} does not fit into the first half of {steps} sampler "
                f"steps. Set it to at most {half}, or take more rollout.steps."
            )
        if self.window_every and self.window == half:
            raise ValueError(
                f"rollout.window_every = {self.window_every} has nowhere to move to: rollout.window = "
                f"{self.window} fills the first half of {steps} sampler steps. Set it to 0, or make the "
                "window shorter."
            )


@dataclass(frozen=True)
class RewardSettings(Group):
    """What is maximized."""

    section_name: ClassVar[str | None] = "objective"

    rewards: dict[str, float] = option(
        {"whole": 0.5, "patch": 0.5, "pixels": 0.5, "edges": 0.5, "background": 0.25},
        "Weight of each part of the reward; a part of weight 0 is only logged. Further parts are seam "
        "(the ring around the region's edge), judge (see the group judge) and adversarial (learns during "
        "the run to tell the truth from samples, Adv-GRPO; train grpo only).",
    )
    dreamsim: str | None = option(
        None, "DreamSim weights (.safetensors) for whole and patch; empty: a structural score."
    )
    patience: int = option(
        0,
        "Validations without a gain after which the run stops; best.safetensors keeps the best "
        "refiner; 0: never stop early.",
        0,
        10**6,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(self.rewards.values()):
            raise ValueError(
                "All weights in objective.rewards are 0, so there is nothing to maximize."
            )


@dataclass(frozen=True)
class JudgeSettings(Group):
    """The vision-language model behind the part "judge" of the reward."""

    url: str | None = option(
        None, "OpenAI-compatible endpoint (http://HOST:PORT/v1); several, separated by commas."
    )
    model: str = option("", "Name of the model at the endpoint.")
    key: str | None = option(None, "Environment variable that holds the key.")
    form: Form = option(
        "digit",
        "How it is asked: an expected digit (UniWorld-V2), P(yes) (RewardDance), EditScore's two "
        "questions (edit), or the share of siblings beaten in pairs (Pref-GRPO).",
    )
    passes: int = option(1, "Replies per sample, at temperature 0.7 if more than one.", 1, 64)
    tie_band: float = option(0.05, "Preferences this close to one half are ties (pairs).", 0, 0.49)
    timeout: float = option(60.0, "Seconds per reply.", 1e-3, 1e5)
    retries: int = option(
        3, "Further attempts after a timeout or a busy server, after 1, 2, 4, ... s.", 0, 100
    )


@dataclass(frozen=True)
class ObjectiveSettings(RewardSettings):
    """What stage 2 maximizes, and how."""

    algorithm: Literal["grpo", "nft"] = option("grpo", "Flow-GRPO, or DiffusionNFT.")
    combine: Combine = option(
        "each",
        "Normalize each part of the reward within its group (each) or only their sum (sum, Flow-GRPO); "
        "each, and once more over the batch (gdpo, GDPO); each, only for samples that no sibling beats in "
        "every part (pareto, Parrot; for groups of 12 and more).",
    )
    tame: bool = option(
        False,
        "Take ln(1 + R) of parts whose relative spread is above the mean of the parts (PaCo-RL).",
    )
    spread: Spread = option(
        "group",
        "Divide by the root mean square deviation within the group, pooled over all groups (batch; "
        "Flow-GRPO's global_std also counts the differences between items), or averaged over the epochs "
        "by the kind of detail that the triplets name (running, OneThinker).",
    )
    spread_decay: float = option(
        0.9, "Decay of the running spread, per epoch (spread = running).", 0, 0.9999
    )
    floor: float = option(1e-4, "Groups with a spread not above this are dropped.", 0, 1)
    clip: float | None = option(
        None,
        "Clip range of the ratio times the square root of a sample's dimensions; empty: 0.026, "
        "Flow-GRPO's 1e-4 at 512 px, or with guard = scaled 0.001, the published 4e-6.",
        0,
        1e6,
    )
    guard: Guard = option(
        "offset",
        "GRPO-Guard's correction of the ratio: offset only centers it, scaled is the published form "
        "(times the standard deviation of the step, loss divided by its length).",
    )
    kl: float | None = option(
        None,
        "Weight of the divergence; empty: grpo 0.01 (exact KL including the step length dt; Flow-GRPO "
        "leaves dt out, its 0.04 is 0.004 here at 10 steps), nft 2e-5 (squared difference of the "
        "velocities; the published 1e-4 stands beside a loss multiplied by 5).",
        0,
        1e6,
    )
    kl_to: Literal["old", "ref"] | None = option(
        None,
        "Divergence from the policy that drew the samples (old), or from stage 1 (ref); empty: grpo "
        "old, as in the paper's figure, nft ref, as published.",
    )
    updates: int = option(2, "Optimizer updates per epoch.", 1, 1024)
    map_share: float = option(
        0.0,
        "Share of the advantage that comes from each place's own error instead of the sample's reward; "
        "grpo then has a ratio for each place, and nft needs nft_adaptive = false; 0: rewards of whole "
        "samples.",
        0,
        1,
    )
    nft_beta: float = option(
        1.0, "Distance of DiffusionNFT's implicit policies from the old policy.", 1e-3, 10
    )
    nft_levels: int = option(2, "Noise levels at which each sample is used (nft).", 1, 100)
    nft_adaptive: bool = option(
        True, "Divide the error of each sample by its size (nft), as the paper does."
    )

    @property
    def clip_unit(self) -> float:
        """The clip range times the root of a sample's dimensions."""
        if self.clip is not None:
            return self.clip
        return 0.001 if self.guard == "scaled" else 0.026

    @property
    def kl_weight(self) -> float:
        """The weight of the divergence."""
        return ALGORITHMS[self.algorithm].kl if self.kl is None else self.kl

    @property
    def kl_reference(self) -> str:
        """The copy of the weights from which the divergence is measured."""
        return self.kl_to or ALGORITHMS[self.algorithm].kl_to


@dataclass(frozen=True)
class GrpoConfig(RunConfig):
    """Stage 2: reinforcement learning from rewards."""

    kind: ClassVar[str] = "grpo"
    needs_pixels: ClassVar[bool] = True

    model: ModelSettings = section(ModelSettings)
    data: DataSettings = section(DataSettings)
    rollout: RolloutSettings = section(RolloutSettings)
    objective: ObjectiveSettings = section(ObjectiveSettings)
    judge: JudgeSettings = section(JudgeSettings)
    optimizer: OptimizerSettings = section(OptimizerSettings)
    run: RunSettings = section(RunSettings)

    @property
    def algorithm(self) -> str:
        """See `RunConfig.algorithm`."""
        return self.objective.algorithm

    @property
    def sampler_steps(self) -> int | None:
        """See `RunConfig.sampler_steps`."""
        return self.rollout.steps

    @property
    def patience(self) -> int:
        """See `RunConfig.patience`."""
        return self.objective.patience

    def __post_init__(self) -> None:
        self.check_patience()
        self._check_sampling()
        self._check_rewards()
        if self.rollout.groups % self.objective.updates:
            raise ValueError(
                f"rollout.groups = {self.rollout.groups} is not a multiple of objective.updates = "
                f"{self.objective.updates}."
            )
        if self.rollout.group % self.run.micro_batch:
            raise ValueError(
                f"rollout.group = {self.rollout.group} is not a multiple of run.micro_batch = "
                f"{self.run.micro_batch}."
            )

    def _check_sampling(self) -> None:
        """Raise ValueError for rollouts that the algorithm cannot learn from or does not make."""
        r = self.rollout
        if ALGORITHMS[self.objective.algorithm].samples_stochastically:
            if r.group_mean:
                raise ValueError(
                    "rollout.group_mean = true learns from the mean of samples, which has no probability "
                    "ratio for GRPO: set objective.algorithm = 'nft' or rollout.group_mean = false."
                )
            if r.steps is not None:
                r.check_window(r.steps)
            return
        if r.same_noise:
            raise ValueError(
                "rollout.same_noise = true leaves nothing to learn with objective.algorithm = 'nft', whose "
                "sampler is deterministic: samples from the same noise are identical. Set it to false."
            )
        for name, value, fix in (
            ("eta_end", r.eta_end, "Leave it empty"),
            ("window_every", r.window_every, "Set it to 0"),
        ):
            if value:
                raise ValueError(
                    f"rollout.{name} = {value:g} is about stochastic steps, but with objective.algorithm = "
                    f"'nft' all are deterministic. {fix}, or use 'grpo'."
                )

    def _check_rewards(self) -> None:
        """Raise ValueError for settings of the reward that rule each other out."""
        o, parts = self.objective, [k for k, weight in self.objective.rewards.items() if weight]
        if o.map_share and o.algorithm == "nft" and o.nft_adaptive:
            raise ValueError(
                f"objective.map_share = {o.map_share:g} needs objective.nft_adaptive = false with nft, got "
                f"{o.nft_adaptive}: that loss divides by the size of a whole sample's error."
            )
        if o.tame and len(parts) == 1:
            raise ValueError(
                f"objective.tame = true quiets the loudest of several parts, but objective.rewards has "
                f"only {parts[0]}. Set it to false."
            )
        if self.judge.url and "judge" not in parts:
            raise ValueError(
                f"judge.url = {self.judge.url!r} is never asked, since judge has no weight in "
                "objective.rewards. Give it one, or leave judge.url empty."
            )

    def cost(self, steps: int) -> StepCost:
        """See `RunConfig.cost`: the samples; and the steps of the window replayed (grpo), or each
        sample at some levels under the old and the new weights (nft).
        """
        r, o = self.rollout, self.objective
        samples = r.groups * r.group
        anchor = o.kl_weight > 0 and o.kl_reference == "ref"
        if o.algorithm == "grpo":
            r.check_window(steps)
            used = samples * r.window
            return StepCost(samples * steps + used * anchor, used, copies=2)
        used = samples * o.nft_levels * (1 + r.group_mean)  # the mean at each sample's noise
        return StepCost(samples * steps + used * (1 + anchor), used, copies=2)

    def check_processes(self, count: int) -> None:
        """Raise ValueError if the groups cannot be split evenly over processes."""
        if self.rollout.groups % count:
            raise ValueError(
                f"rollout.groups = {self.rollout.groups} is not a multiple of {count} processes."
            )


# Values that differ from the defaults. 24 GB: 8-bit base (11.9 GB), two clean inputs at 0.26
# megapixels (3584 tokens), micro-batch 1. 80 GB: bf16 base, rank 64, one megapixel (12800 tokens).
SFT_PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "model": {"train": "full"},
        "data": {"context": (1.2, 2.0)},
        "loss": {
            "mean": 4.0,
            "std": 1.5,
            "uniform": 0.05,
            "shift": False,
            "reference_dropout": 0.0,
            "caption_dropout": 0.0,
        },
        "optimizer": {
            "rate": 2e-4,
            "weight_decay": 0.01,
            "beta2": 0.98,
            "ema": 0.998,
            "warmup": 50,
            "schedule": "cosine",
        },
        "run": {"batch": 8, "micro_batch": 8, "max_steps": 500},
    },
    "kontext-24gb": {
        "model": {
            "base": "flux1-dev-kontext.safetensors",
            "quantize": "int8",
            "rank": 16,
            "alpha": 16.0,
            "checkpointing": True,
            "precision": "bf16",
        },
        "data": {"megapixels": 0.262, "crops": 2},
        "optimizer": {"eight_bit": True, "warmup": 50},
        "run": {"batch": 4, "micro_batch": 1, "max_steps": 3000, "board": "tensorboard"},
    },
    "kontext-80gb": {
        "model": {
            "base": "flux1-dev-kontext.safetensors",
            "rank": 64,
            "alpha": 64.0,
            "checkpointing": True,
            "precision": "bf16",
        },
        "data": {"crops": 2},
        "optimizer": {"warmup": 100, "ema": 0.999},
        "run": {"batch": 8, "micro_batch": 2, "max_steps": 6000, "board": "tensorboard"},
    },
}

GRPO_PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "model": {"train": "full"},
        "data": {"context": (1.2, 2.0)},
        # Nano's schedule stays at t > 0.94, where samples differ only by a residue of their noise. Their
        # mean has less of it and is learnt from. Updates are many and small, so that the loss can
        # correct the unintended part of each.
        "rollout": {
            "groups": 16,
            "group": 4,
            "steps": None,
            "guidance": None,
            "group_mean": True,
        },
        "objective": {
            "algorithm": "nft",
            "kl": 0.0,
            "nft_levels": 1,
            "nft_beta": 0.2,
            "nft_adaptive": False,
            "updates": 4,
        },
        "optimizer": {"rate": 1e-5, "ema": 0.9, "beta2": 0.99},
        "run": {"micro_batch": 4, "max_steps": 40, "save_every": 5, "validate_every": 5},
    },
    "kontext-24gb": {
        "model": SFT_PRESETS["kontext-24gb"]["model"],
        "data": {"megapixels": 0.262},
        "rollout": {"steps": 6, "groups": 24, "group": 12},
        "optimizer": {"eight_bit": True, "ema": 0.9, "ema_every": 8},
        "run": {
            "micro_batch": 1,
            "max_steps": 300,
            "save_every": 5,
            "validate_every": 10,
            "board": "tensorboard",
        },
    },
    "kontext-80gb": {
        "model": SFT_PRESETS["kontext-80gb"]["model"],
        "data": {"megapixels": 0.262},
        "optimizer": {"ema": 0.9, "ema_every": 8},
        "run": {
            "micro_batch": 4,
            "max_steps": 300,
            "save_every": 5,
            "validate_every": 10,
            "board": "tensorboard",
        },
    },
}
