"""How a quantised model is trained, whatever for: options that every such method has, and their checks."""

import dataclasses
import importlib.util
from typing import Literal, NamedTuple

from jvq.core.recipe import Plan, Sites
from jvq.methods.minmax import widths
from jvq.quantizers.uniform import check_choice
from jvq.schedule import Rule, Schedule


@dataclasses.dataclass(frozen=True)
class Learning:
    """Widths (1 to 16 bits, or 32 for float), length, rates, checkpoints."""

    bits: int = 4  # of weights and activations
    weight_bits: int | None = None  # instead of bits
    act_bits: int | None = None  # instead of bits
    edge_bits: int | None = 8  # of the patch embedding and the head; None: as all others
    teacher: str = ""  # weights of the teacher; "": the checkpoint that is quantised
    epochs: int = 6
    steps: int = 0  # instead of epochs; 0: as many as these have
    batch: int = 128
    learning_rate: float = 5e-4
    warmup: float = 0.05  # fraction of the steps
    weight_decay: float = 1e-4
    scale_rate: float = 1.0  # learning rate of scales and offsets, as a multiple
    clip: float | None = None  # global norm of the gradient
    rule: Rule = "adamw"
    accumulate: int = 1  # parts of a batch computed one after the other
    ema: float = 0.0  # decay of the moving average that is evaluated; 0: none
    precision: Literal["float32", "bfloat16"] = "float32"  # of operands in the student's products
    drop_path: float = 0.0  # how often the last block's branches are dropped, of an image; less in earlier blocks
    shift: int = 2  # pixels, each way; every other image is mirrored (without stored crops)
    save_every: int = 500  # steps between checkpoints
    tensorboard: bool = False  # events beside the JSON lines
    holdout: int = 0  # training images kept back to tell the best checkpoint
    take: Literal["last", "best"] = "last"  # which checkpoint is the result
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("method.take", self.take, ("last", "best"))
        check_choice("method.precision", self.precision, ("float32", "bfloat16"))
        self.check_shares("warmup", "ema", "drop_path")
        for name in ("epochs", "batch", "save_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"method.{name}: got {getattr(self, name)}, must be at least 1")
        self.check_nonnegative("holdout", "steps", "weight_decay", "shift")
        for name in ("learning_rate", "scale_rate", "clip"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"method.{name}: got {getattr(self, name)}, must be positive")
        if self.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise ValueError("method.tensorboard: needs tensorboardX, which pip install 'jvq[tensorboard]' brings")
        if self.take == "best" and not self.holdout:
            raise ValueError("method.take: 'best' needs images to tell it by, method.holdout")
        if self.batch % self.accumulate:
            raise ValueError(f"method.batch: got {self.batch}, must be a multiple of {self.accumulate} (accumulate)")
        self.schedule(self.batch)  # whose own fields are checked there

    def check_shares(self, *names: str) -> None:
        """Raises ``ValueError`` where one of these options is no share below the whole."""
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"method.{name}: got {getattr(self, name)}, must be in [0, 1)")

    def check_nonnegative(self, *names: str) -> None:
        """Raises ``ValueError`` where one of these options is below 0."""
        for name in names:
            if getattr(self, name) < 0:
                raise ValueError(f"method.{name}: got {getattr(self, name)}, must be at least 0")

    def widths(self) -> tuple[int, int]:
        """Bits of weights and of activations."""
        return widths(self.bits, self.weight_bits, self.act_bits)

    def schedule(self, images: int) -> Schedule:
        """The schedule for a training set of that many images, remainders of epochs dropped."""
        return Schedule(
            self.steps or self.epochs * (images // self.batch),
            self.learning_rate,
            self.warmup,
            self.weight_decay,
            self.clip,
            rule=self.rule,
            betas=(0.9, 0.999),
            scale_rate=self.scale_rate,
            ema=self.ema,
            accumulate=self.accumulate,
        )

    def words(self) -> dict[str, str]:
        """What has to be known of the training to compare a result."""
        length = f"{self.steps} steps" if self.steps else f"{self.epochs} epochs"
        return {
            "training": f"{length} of {self.batch}, {self.rule} {self.learning_rate:g}, decay {self.weight_decay:g}",
            "result": f"{self.take} checkpoint" + (f", moving average {self.ema}" if self.ema else ""),
        }


class Course(NamedTuple):
    """A part of a training: under which part of the plan, and from which share of the steps to which."""

    plan: Plan
    name: str = ""
    begin: float = 0.0
    end: float = 1.0


def drop(options: Learning, known: Sites) -> dict[str, float]:
    """By the last product of each residual branch how often it is dropped: growing evenly up to ``drop_path``."""
    ends = [s for s in dict.fromkeys(o.site for o in known.values()) if s.endswith(("attn/proj", "mlp/fc2"))]
    last = max(len(ends) // 2 - 1, 1)
    return {site: options.drop_path * (i // 2) / last for i, site in enumerate(ends)} if options.drop_path else {}
