"""What the rows of a table share: passes over the calibration images, and executables."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jvq.core.calibrate import Fitted, calibrate_all
from jvq.core.mesh import everywhere
from jvq.core.recipe import Plan, forms
from jvq.fitting import fitted_row
from jvq.models.weights import Checkpoint
from jvq.quantizers import Grouped
from jvq.quantizers.grouped import cut, padded
from jvq.rows import Material, Row, fitted_checkpoint

Key = tuple[str, str]
Plans = Mapping[Key, Row]
"""Width and the row's name to the row."""
Keep = Callable[..., Any]


def most_groups(plans: Iterable[Plan]) -> int:
    """The largest number of groups: with as many places in every state, all numbers of groups share executables."""
    return max((q.groups for plan in plans for q in plan.values() if isinstance(q, Grouped)), default=1)


def fitted(plans: Plans, material: Material, keep: Keep = lambda key, work, *args: work(*args)) -> dict[Key, Fitted]:
    """Every row fitted; rows that only calibrate, on float activations, share the passes.

    ``keep(key, work, *args)`` is what the work gives, or has given in an earlier run.
    """
    simple = {key: row for key, row in plans.items() if row.own is None and row.method.calibrates(row.options)}
    found = keep("calibrated", _calibrated, simple, material)
    for key, row in plans.items():
        if key not in simple:
            found[key] = keep(f"{' '.join(key)} fitted", fitted_row, row, material)
    return found


def _calibrated(simple: Plans, material: Material) -> dict[Key, Fitted]:
    """The states of rows that only calibrate."""
    forward, params = material.checkpoint.model.forward, material.checkpoint.params
    shared: dict[str, Any] = {"track": material.console.track, "mesh": material.mesh}
    length = most_groups(row.plan for row in simple.values())
    wide = [{a: _with_places(q, length) for a, q in row.plan.items()} for row in simple.values()]
    states = calibrate_all(forward, params, material.images, wide, material.known, **shared)
    found = {}
    for (key, row), state in zip(simple.items(), states, strict=True):
        own = {a: cut(state[a], q.groups) if isinstance(q, Grouped) else state[a] for a, q in row.plan.items()}
        found[key] = Fitted(row.plan, own)
    return found


def _with_places(q: Any, length: int) -> Any:
    return dataclasses.replace(q, capacity=length) if isinstance(q, Grouped) else q


@dataclasses.dataclass
class Runners:
    """Quantised models of a run; rows with one model and plans of one form share an executable."""

    runner: Callable[..., Any]  # of the task
    checkpoint: Checkpoint
    length: int  # places for groups in every state, where no fit needs more
    mesh: Mesh | None = None
    made: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def model(self, row: Row, fit: Fitted) -> Callable[[jax.Array], Any]:
        """``model(images) -> outputs`` of a row."""
        plan, state = fit.plan, fit.qstate
        checkpoint = self.checkpoint if row.own is None else row.own.checkpoint
        key = checkpoint.model.spec, forms(plan)
        if key not in self.made:
            self.made[key] = self.runner(checkpoint.model.forward, dict(key[1]))
        run, length = self.made[key], max(self.length, most_groups([plan]))
        wide = {a: padded(s, length) if isinstance(plan[a], Grouped) else s for a, s in state.items()}
        params, wide = everywhere(self.mesh, (fitted_checkpoint(checkpoint, fit).params, wide))
        return lambda images: run(params, wide, images)
