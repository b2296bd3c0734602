"""A deployment: a frozen model with everything that running it needs, which every exporter starts from."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jvq.core.dot import Dot
from jvq.core.freeze import freeze
from jvq.core.quantizer import Quantizer, State
from jvq.core.recipe import Sites, sites
from jvq.core.whole import whole_dot
from jvq.integer import Way, compiled, integer_dot, prepared, ways
from jvq.integer.rows import Weights
from jvq.models import Model
from jvq.models.weights import Checkpoint
from jvq.models.weights.native import described


@dataclasses.dataclass(frozen=True)
class Deployment:
    """A model whose weights are packed integers, with the quantisers of its activations and their state."""

    model: Model
    params: Any  # the model's tree, with Packed leaves
    plan: Mapping[str, Quantizer]  # of activations; a weight's quantiser has become its Packed leaf
    qstate: Mapping[str, State]  # of activations
    preprocess: Mapping[str, Any]  # fields of jvq.data.Preprocess
    recipe: Mapping[str, str]  # every address that is quantised, weights too, and by what, for readers
    protocol: Mapping[str, Any]  # widths of the ends, granularity, calibration set, seed: what belongs to every result
    notes: Mapping[str, Any]  # where the float weights come from

    def __repr__(self) -> str:
        return f"Deployment({described(self.model, self.params)}; {len(self.plan)} activations quantised)"

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        plan: Mapping[str, Quantizer],
        qstate: Mapping[str, State],
        known: Sites,
        protocol: Mapping[str, Any] = {},
    ) -> "Deployment":
        """The checkpoint under a fitted plan, its weights packed."""
        params, rest, state = freeze(checkpoint.params, plan, qstate, known)
        recipe = {address: repr(q) for address, q in plan.items()}
        return cls(checkpoint.model, params, rest, state, checkpoint.preprocess, recipe, protocol, checkpoint.notes)

    def dot(self, qstate: Mapping[str, State] | None = None) -> Dot:
        """The dot that computes with packed weights and fake-quantised activations in float32: the reference."""
        return whole_dot(self.plan, self.qstate if qstate is None else qstate)

    def forward(self, images: jax.typing.ArrayLike) -> jax.Array:
        """Images [b y x c] to outputs [b ...] by that dot."""
        return self.model.forward(self.params, images, self.dot())

    @property
    def known(self) -> Sites:
        """The operands of the model."""
        return sites(self.model.forward, self.params, self.model.image)

    def integer(self, weights: Weights = "fast", impl: str = "auto") -> Callable[[jax.typing.ArrayLike], jax.Array]:
        """``run(images [b y x c]) -> outputs [b ...]`` in integers, jitted (:mod:`jvq.integer`).

        ``weights``: "fast" keeps a byte a weight code in memory, "small" 1 to 4 bits packed; ``impl`` names kernels.
        """
        rows = prepared(self.params, self.known, weights)

        @compiled
        def run(rows: Any, qstate: Mapping[str, State], images: jax.Array) -> jax.Array:
            return self.model.forward(rows, images, integer_dot(self.plan, qstate, impl=impl, count=weights == "small"))

        return lambda images: run(rows, self.qstate, jax.numpy.asarray(images))

    def ways(self, weights: Weights = "fast") -> dict[str, Way]:
        """How each product is computed in integers, by site, or why it is not."""
        rows = prepared(self.params, self.known, weights)
        image = jax.ShapeDtypeStruct((1, *self.model.image), "float32")
        return ways(self.model.forward, rows, self.plan, self.qstate, image, count=weights == "small")
