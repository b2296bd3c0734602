"""The training loop: one jitted, donated step over any tree of arrays. It takes an objective and knows no method.

Data parallelism is ``jit`` with ``NamedSharding``: batches lie in parts on all devices, everything else on each of them
whole (or as :func:`~jvq.core.mesh.placed` laid it), and XLA adds up the gradients. Nothing that happens depends on when
a run was interrupted: batches and keys are functions of the step.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jvq.checkpoints import Keeper
from jvq.core.mesh import everywhere, mesh_of, own_copies, parts, split
from jvq.metrics import Log
from jvq.schedule import Schedule

Params = Any  #: a pytree of arrays
Batch = Mapping[str, Any]
Numbers = dict[str, jax.Array]
Loss = Callable[[Params, Batch, Key[Array, ""]], tuple[jax.Array, Numbers]]
"""``loss(params, batch, key) -> (scalar, metrics)``, pure."""


class Objective(NamedTuple):
    """What is minimised, and what else happens at each step. Everything but ``loss`` may be left out."""

    loss: Callable[[Params, Any, Batch, Key[Array, ""]], tuple[jax.Array, Numbers]]
    """``loss(trained, fixed, batch, key) -> (scalar, metrics)``."""
    fixed: Any = ()  # arrays that the loss reads and nobody trains: a teacher
    regularizer: Callable[[Params, jax.Array], tuple[jax.Array, Numbers]] | None = None
    """``regularizer(trained, step) -> (scalar, metrics)``, added to the loss; its share of the gradient is logged."""
    after: Callable[[Params, Any, jax.Array], tuple[Params, Any, Numbers]] | None = None
    """``after(trained, carried, step) -> (trained, carried, metrics)``, behind the update: projections, trackers."""
    carried: Any = ()  # what ``after`` hands on from step to step
    locate: Callable[[Params, Batch, Key[Array, ""]], str] | None = None
    """The address of the first value that is not finite in the loss's forward pass, "" where there is none."""
    validate: Callable[[Params], dict[str, float]] | None = None
    """Metrics of the trained parameters, with "score" (larger is better) among them; at every checkpoint."""
    reweighting: optax.GradientTransformation | None = None  # of the updates, after the schedule's rule


class Progress(NamedTuple):
    """Where a training run is: all that it needs to go on."""

    trained: Params
    state: Any  # the optimizer's
    mean: Params  # exponential moving average of ``trained``; () where none is kept
    carried: Any
    step: jax.Array  # updates made
    failed: jax.Array  # whether a loss or gradient was not finite: from then on ``trained`` stays as it was


def fit(
    loss: Loss,
    params: Params,
    batches: Iterable[Batch] | Callable[[int], Iterable[Batch]],
    schedule: Schedule,
    key: Key[Array, ""],
    *,
    keeper: Keeper | None = None,
    log: Path | None = None,
    every: int = 50,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    stopping: Callable[[], bool] = lambda: False,
    mesh: Mesh | None = None,
) -> Params:
    """The parameters after ``schedule.steps`` steps over ``batches``: :func:`run` for a loss alone.

    They lie as training leaves them, but of many processes each has a copy of its own of what does not lie in parts.
    With a ``keeper`` the batches have to be a function of the step that is gone on from.
    """
    objective = Objective(lambda trained, fixed, batch, key: loss(trained, batch, key))
    record = None if log is None else Log(log)
    following = batches if callable(batches) else lambda start: batches
    shown: Any = {"log": record, "every": every, "on_step": on_step, "stopping": stopping, "mesh": mesh}
    return own_copies(run(objective, params, following, schedule, key, keeper=keeper, **shown).trained)


def run(
    objective: Objective,
    trained: Params,
    batches: Callable[[int], Iterable[Batch]],
    schedule: Schedule,
    key: Key[Array, ""],
    *,
    keeper: Keeper | None = None,
    log: Log | None = None,
    every: int = 50,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    devices: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
    mesh: Mesh | None = None,
) -> Progress:
    """Where training is after ``schedule.steps`` steps; ``batches(start)`` are those from step ``start`` on.

    Step ``i`` draws from ``fold_in(key, i)``: the same arguments give the same numbers, whether or not ``keeper`` had
    a checkpoint to go on from. ``log`` receives metrics every ``every`` steps. On several devices (those of ``mesh``;
    without one all, or the first ``devices``) a batch is split into equal parts. Raises ``ValueError`` where a loss or
    gradient is not finite, with the step, the first address and the last checkpoint; that checkpoint, and all before,
    are good. Where ``stopping`` says so a checkpoint is saved behind the step of the moment, and ``KeyboardInterrupt``
    raised.
    """
    optimizer, rate = schedule.optimizer(), schedule.rate()
    if objective.reweighting is not None:
        optimizer = optax.chain(optimizer, objective.reweighting)
    mesh = mesh_of(devices) if mesh is None else mesh
    begin = everywhere(mesh, beginning(objective, trained, optimizer, schedule))
    progress = keeper.restored(begin) if keeper is not None else begin
    progress = everywhere(mesh, jax.tree.map(jnp.copy, progress))  # the caller's arrays are not donated
    del begin  # else it stays beside it all the time
    lying = jax.tree.map(lambda x: x.sharding, progress)  # and so it stays
    step = jax.jit(stepper(objective, optimizer, schedule), donate_argnums=0, out_shardings=(lying, None))
    fixed = everywhere(mesh, objective.fixed)
    first = done = int(progress.step)
    if log is not None:
        log.begin(first)
    waiting: tuple[int, Batch, Any] | None = None  # looked at one step later, so that the device need not wait
    for i, batch in zip(range(first, schedule.steps), batches(first), strict=False):
        batch = _placed(_divisible(batch, parts(mesh) * schedule.accumulate), mesh)
        drawn = jax.random.fold_in(key, i)
        progress, metrics = step(progress, fixed, batch, drawn)
        done, last = i + 1, i + 1 == schedule.steps
        saves = keeper is not None and (last or done % keeper.every == 0)
        if waiting is not None:
            _check(*waiting, progress, objective, key, keeper)
        waiting = i, batch, metrics
        if saves or last or done % every == 0:
            _check(*waiting, progress, objective, key, keeper)
            waiting = None
        if last or done % every == 0:
            numbers = {name: float(value) for name, value in metrics.items() if name != "finite"}
            on_step(done, numbers)
            if log is not None:
                log.write(done, {**numbers, "rate": float(jnp.asarray(rate(i)))})
        if keeper is not None and saves:
            found = objective.validate(averaged(progress)) if objective.validate is not None else {}
            if log is not None and found:
                log.write(done, found)
            keeper.save(done, progress, found.get("score"))
        if stopping() and not last:
            break
    if waiting is not None:
        _check(*waiting, progress, objective, key, keeper)
    stopped = done < schedule.steps and stopping()
    if keeper is not None:
        if stopped and done % keeper.every:  # without a score: nobody would have asked for one here
            keeper.save(done, progress)
        keeper.wait()
    if stopped:
        raise KeyboardInterrupt
    if done < schedule.steps:
        raise ValueError(f"training wanted {schedule.steps} steps, the batches ended after {done}")
    return progress


def beginning(
    objective: Objective, trained: Params, optimizer: optax.GradientTransformation, schedule: Schedule
) -> Progress:
    """Before the first step."""
    mean = trained if schedule.ema else ()
    return Progress(trained, optimizer.init(trained), mean, objective.carried, jnp.int32(0), jnp.array(False))


def averaged(progress: Progress) -> Params:
    """What is evaluated: the moving average where one is kept, else the parameters themselves."""
    return progress.trained if isinstance(progress.mean, tuple) and not progress.mean else progress.mean


def stepper(objective: Objective, optimizer: optax.GradientTransformation, schedule: Schedule) -> Any:
    """``step(progress, fixed, batch, key) -> (progress, metrics)``: one update, pure."""
    slope = jax.value_and_grad(objective.loss, has_aux=True)

    def step(p: Progress, fixed: Any, batch: Batch, key: Key[Array, ""]) -> tuple[Progress, Numbers]:
        (value, metrics), grads = _accumulated(slope, schedule.accumulate, p.trained, fixed, batch, key)
        total, metrics = value, {"loss": value, **metrics}
        if objective.regularizer is not None:
            (extra, more), pull = jax.value_and_grad(objective.regularizer, has_aux=True)(p.trained, p.step)
            metrics |= {"regularizer": extra, **more, "rho": _share(pull, grads)}
            total, grads = total + extra, jax.tree.map(jnp.add, grads, pull)
        finite = jnp.stack([jnp.isfinite(x).all() for x in (total, *jax.tree.leaves(grads))]).all() & ~p.failed
        updates, state = optimizer.update(grads, p.state, p.trained)
        trained, carried = optax.apply_updates(p.trained, updates), p.carried
        if objective.after is not None:
            trained, carried, more = objective.after(trained, carried, p.step)
            metrics |= more
        mean = p.mean
        if schedule.ema:
            mean = optax.incremental_update(trained, p.mean, 1 - schedule.ema)
        # of a run that failed only these are looked at again: nothing of it is kept
        trained = jax.tree.map(lambda new, old: jnp.where(finite, new, old), trained, p.trained)
        return Progress(trained, state, mean, carried, p.step + 1, ~finite), {**metrics, "finite": finite}

    return step


def _accumulated(
    slope: Any, parts: int, trained: Params, fixed: Any, batch: Batch, key: Key[Array, ""]
) -> tuple[tuple[jax.Array, Numbers], Params]:
    """Loss, metrics and gradient of a batch: means over ``parts`` equal parts of it, one after the other."""
    if parts == 1:
        return slope(trained, fixed, batch, key)
    # rows r, r + parts, r + 2 parts, ... together: every device has its share of every part
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)

    def add(sums: Any, part: tuple[Batch, Key[Array, ""]]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, slope(trained, fixed, *part)), None

    keys = jax.random.split(key, parts)
    shapes = jax.eval_shape(slope, trained, fixed, jax.tree.map(lambda x: x[0], split), keys[0])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros, (split, keys))
    return jax.tree.map(lambda x: x / parts, sums)


def _share(pull: Params, grads: Params) -> jax.Array:
    """Root mean square of the regulariser's gradient over that of the loss's, on the leaves that it moves at all."""
    moved = jax.tree.map(lambda x: (x != 0).any(), pull)
    a, b = (
        sum(jax.tree.leaves(jax.tree.map(lambda x, m: jnp.where(m, jnp.square(x).sum(), 0.0), tree, moved)))
        for tree in (pull, grads)
    )
    return jnp.sqrt(a / jnp.where(b > 0, b, 1.0))


def _placed(batch: Batch, mesh: Mesh) -> Batch:
    """The batch on the devices, its rows in equal parts; numbers whole."""
    return {name: split(mesh, x).arrays if np.ndim(x) else everywhere(mesh, x) for name, x in batch.items()}


def _divisible(batch: Batch, parts: int) -> Batch:
    rows = {x.shape[0] for x in jax.tree.leaves(batch) if getattr(x, "ndim", 0)}
    if parts > 1 and any(n % parts for n in rows):
        raise ValueError(f"a batch of {rows} rows cannot be split into {parts} equal parts (devices x accumulate)")
    return batch


def _check(
    i: int,
    batch: Batch,
    metrics: Numbers,
    progress: Progress,
    objective: Objective,
    key: Key[Array, ""],
    keeper: Keeper | None,
) -> None:
    """Raises ``ValueError`` where step ``i`` was the first that came out not finite."""
    if bool(metrics["finite"]):
        return
    drawn = jax.random.fold_in(key, i)
    where = objective.locate(progress.trained, batch, drawn) if objective.locate is not None else ""
    where = where or _bad_gradient(objective, progress.trained, batch, drawn)
    kept = "" if keeper is None else f"; the last good checkpoint is {keeper.last() or 'none'}"
    first = f", the first value that is not finite is in {where}" if where else ""
    raise ValueError(f"training step {i + 1}: the loss is {float(metrics['loss'])}{first}{kept}; lower learning_rate")


def _bad_gradient(objective: Objective, trained: Params, batch: Batch, key: Key[Array, ""]) -> str:
    """The first leaf of the gradient that is not finite."""
    _, grads = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))(trained, objective.fixed, batch, key)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        if not bool(jnp.isfinite(leaf).all()):
            return f"the gradient of {'/'.join(str(getattr(k, 'key', k)) for k in path)}"
    return ""
