"""From a recipe to a plan: which operand gets which quantiser, with every mistake found before anything is computed."""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jvq.core import axes
from jvq.core.dot import PRODUCT, Dot, float_dot
from jvq.core.errors import nearest
from jvq.core.packed import Encoded, is_encoded
from jvq.core.quantizer import Quantizer

Recipe = Sequence[tuple[str, Quantizer | None]]
"""Ordered rules (pattern, quantiser). Patterns are globs over addresses (``*.w``); the last match wins; None: float."""

Plan = Mapping[str, Quantizer]
"""Static: address to quantiser, in the model's order."""

Forward = Callable[[Any, Any, Dot], jax.Array]
"""``forward(params, images [b y x c], dot) -> outputs [b ...]``: a model."""


@dataclasses.dataclass(frozen=True)
class Operand:
    """One operand of one product of a model, as the abstract trace found it."""

    address: str  # block03/mlp/fc1.x
    letters: str  # bnd
    shape: tuple[int, ...]  # of a batch of one image
    out: str  # letters of the product: bno
    product: tuple[int, ...]  # its shape, of a batch of one image
    path: tuple[str, ...] | None  # where the operand stands in the parameter tree; None for an activation

    @property
    def site(self) -> str:
        return self.address.rpartition(".")[0]

    @property
    def role(self) -> str:
        return self.address.rpartition(".")[2]

    @property
    def contracted(self) -> str:
        """The letters that the product sums over."""
        return axes.contracted(self.letters, self.out)

    @property
    def batched(self) -> bool:
        """Whether the operand has an image axis: an activation."""
        return "b" in self.letters


def path_of(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The path of a leaf of the parameter tree, as in an :class:`Operand`, from the path that JAX gives."""
    return tuple(str(getattr(k, "key", k)) for k in path)


Sites = Mapping[str, Operand]
"""Address to operand, in the order in which the model multiplies."""


def sites(forward: Forward, params: Any, image: tuple[int, ...]) -> dict[str, Operand]:
    """Every operand of the model by address, from an abstract trace on one image of shape ``image`` (y, x, c)."""
    found: dict[str, Operand] = {}

    def trace(params: Any, images: jax.Array) -> jax.Array:
        leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_encoded)
        paths = {id(leaf): path_of(path) for path, leaf in leaves}

        def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
            letters, out = axes.split(equation)
            if len(operands) != 2 or len(letters) != 2:
                raise ValueError(f"{site}: dot takes two named operands, got {list(operands)} for '{equation}'")
            floats = {role: x.unpack() if isinstance(x, Encoded) else x for role, x in operands.items()}
            y = float_dot(site, equation, **floats)
            for (role, x), axis in zip(operands.items(), letters, strict=True):
                address = f"{site}.{role}"
                if address in found or role == PRODUCT:
                    raise ValueError(f"{address}: two products share this address, or the role is taken")
                found[address] = Operand(address, axis, tuple(x.shape), out, tuple(y.shape), paths.get(id(x)))
            return y

        return forward(params, images, dot)

    jax.eval_shape(trace, params, jax.ShapeDtypeStruct((1, *image), "float32"))
    return found


def forms(plan: Plan) -> tuple[tuple[str, Quantizer], ...]:
    """The plan by its quantisers' forms, hashable: a static argument that plans of equal forms share."""
    return tuple((address, quantizer.form) for address, quantizer in plan.items())


def matching(pattern: str, known: Iterable[str]) -> list[str]:
    """The addresses that a glob pattern names, at least one; ``ValueError`` with the nearest addresses otherwise."""
    known = list(known)
    hits = fnmatch.filter(known, pattern)
    if not hits:
        raise ValueError(f"recipe: pattern '{pattern}' matches no address{nearest(pattern, known)}")
    return hits


def resolve(recipe: Recipe, known: Sites) -> dict[str, Quantizer]:
    """The plan: for each address the quantiser of the last rule that matches it.

    Every quantiser's fit is checked and its ``init`` and ``apply`` are evaluated abstractly on the operand's shape, so
    that all mistakes surface here. Raises ``ValueError``: a rule that matches nothing, a letter that the operand lacks,
    bits or groups out of range.
    """
    chosen: dict[str, Quantizer | None] = {}
    for pattern, quantizer in recipe:
        for address in matching(pattern, known):
            chosen[address] = quantizer
    plan = {address: q for address in known if (q := chosen.get(address)) is not None}
    for address, quantizer in plan.items():
        try:
            _check(quantizer, known[address].letters, known[address].shape)
        except ValueError as error:
            raise ValueError(f"{address}: {error}") from None
    return plan


@functools.lru_cache(maxsize=1024)  # many sites have the same quantiser and shape; what raises is not kept
def _check(quantizer: Quantizer, letters: str, shape: tuple[int, ...]) -> None:
    """Raises ``ValueError`` where the quantiser does not fit an operand [letters] of that shape."""
    quantizer.check(letters, shape)
    x = jax.ShapeDtypeStruct(shape, "float32")
    state = jax.eval_shape(lambda x: quantizer.init(x, letters), x)
    y = jax.eval_shape(lambda s, x: quantizer.apply(s, x, letters), state, x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype), f"{quantizer} gives {y} for {x}"
