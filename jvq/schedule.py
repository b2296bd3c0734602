"""How training steps: the rule of the update, and its rate over the steps."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import optax

Rule = Literal["adamw", "lamb"]
RULES: tuple[Rule, ...] = get_args(Rule)
SCALES = "q"  #: the part of the trained tree that holds quantisers' states
LEARNED = ("scale", "offset")  #: what is trained of these; the rest are constants


@dataclasses.dataclass(frozen=True)
class Schedule:
    """AdamW or LAMB with linear warm-up and cosine decay to zero."""

    steps: int
    learning_rate: float = 1e-3  # at the top
    warmup: float = 0.05  # fraction of the steps
    weight_decay: float = 0.05  # of kernels only: never of biases, norms, tokens, positions, scales
    clip: float | None = 1.0  # global norm of the gradient; None: as it is
    rule: Rule = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)
    scale_rate: float = 1.0  # learning rate of quantisers' scales and offsets, as a multiple
    ema: float = 0.0  # decay of the moving average of what is trained; 0: none is kept
    accumulate: int = 1  # parts of a batch that are computed one after the other

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"schedule.rule: got '{self.rule}', must be one of {', '.join(RULES)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"schedule.ema: got {self.ema}, must be in [0, 1)")
        if self.accumulate < 1:
            raise ValueError(f"schedule.accumulate: got {self.accumulate}, must be at least 1")

    def rate(self) -> optax.Schedule:
        """The learning rate by step."""
        if not self.warmup:
            return optax.cosine_decay_schedule(self.learning_rate, max(self.steps, 1))
        warm = max(1, round(self.warmup * self.steps))
        return optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warm, max(self.steps, warm + 1))

    def optimizer(self) -> optax.GradientTransformation:
        """The whole update rule."""
        make = {"adamw": optax.adamw, "lamb": optax.lamb}[self.rule]
        b1, b2 = self.betas
        parts = [make(self.rate(), b1=b1, b2=b2, weight_decay=self.weight_decay, mask=_kernels)]
        if self.clip is not None:
            parts.insert(0, optax.clip_by_global_norm(self.clip))
        if self.scale_rate != 1.0:
            parts.append(optax.masked(optax.scale(self.scale_rate), _scales))
        return optax.partition({"trained": optax.chain(*parts), "held": optax.set_to_zero()}, _held)


def _names(path: tuple[Any, ...]) -> list[str]:
    return [str(getattr(k, "key", k)) for k in path]


def _held(tree: Any) -> Any:
    """Which leaves are constants of a quantiser's state."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "held" if _is_held(_names(path)) else "trained", tree)


def _is_held(names: list[str]) -> bool:
    return names[:1] == [SCALES] and names[-1] not in LEARNED


def _kernels(tree: Any) -> Any:
    """Which leaves decay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[-1:] == ["kernel"], tree)


def _scales(tree: Any) -> Any:
    """Which leaves are quantisers' states."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[:1] == [SCALES], tree)
