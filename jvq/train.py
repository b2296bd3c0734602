"""The training loop: one jitted, donated step over any parameter tree. It takes a loss and knows no method."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

Params = Any  #: a pytree of arrays
Loss = Callable[[Params, Mapping[str, jax.Array], Key[Array, ""]], tuple[jax.Array, dict[str, jax.Array]]]
"""``loss(params, batch, key) -> (scalar, metrics)``, pure."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """AdamW with linear warm-up and cosine decay to zero."""

    steps: int
    learning_rate: float = 1e-3  # at the top
    warmup: float = 0.05  # fraction of the steps
    weight_decay: float = 0.05  # of kernels only: never of biases, norms, tokens, positions
    clip: float = 1.0  # global norm of the gradient

    def rate(self) -> optax.Schedule:
        """The learning rate by step."""
        warm = max(1, round(self.warmup * self.steps))
        return optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warm, max(self.steps, warm + 1))

    def optimizer(self) -> optax.GradientTransformation:
        """The whole update rule."""

        def decayed(params: Params) -> Params:
            return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", "") == "kernel", params)

        adamw = optax.adamw(self.rate(), b2=0.98, weight_decay=self.weight_decay, mask=decayed)
        return optax.chain(optax.clip_by_global_norm(self.clip), adamw)


def fit(
    loss: Loss,
    params: Params,
    batches: Iterable[Mapping[str, Any]],
    schedule: Schedule,
    key: Key[Array, ""],
    *,
    log: Path | None = None,
    every: int = 50,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> Params:
    """The parameters after ``schedule.steps`` steps over ``batches``.

    Step ``i`` draws from ``fold_in(key, i)``: the same arguments give the same numbers. ``log`` receives a JSON line
    every ``every`` steps. Raises ``ValueError`` as soon as a logged loss is not finite.
    """
    optimizer = schedule.optimizer()

    def step(params: Params, state: Any, batch: Mapping[str, jax.Array], key: Key[Array, ""]) -> Any:
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, {"loss": value, **metrics}

    run = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(lambda x: x.copy(), params)  # the caller's arrays are not donated
    state, start, done = optimizer.init(params), time.monotonic(), 0
    rate = schedule.rate()
    for i, batch in enumerate(batches):
        if i >= schedule.steps:
            break
        params, state, metrics = run(params, state, batch, jax.random.fold_in(key, i))
        done = i + 1
        if done % every == 0 or done == schedule.steps:
            numbers = {name: float(value) for name, value in metrics.items()}
            if numbers["loss"] != numbers["loss"] or abs(numbers["loss"]) == float("inf"):
                raise ValueError(f"training step {done}: the loss is {numbers['loss']}; try a lower learning_rate")
            on_step(done, numbers)
            if log is not None:
                line = {
                    "step": done,
                    **numbers,
                    "rate": float(jnp.asarray(rate(i))),
                    "seconds": time.monotonic() - start,
                }
                with log.open("a") as f:
                    f.write(json.dumps(line) + "\n")
    if done < schedule.steps:
        raise ValueError(f"training wanted {schedule.steps} steps, the batches ended after {done}")
    return params
