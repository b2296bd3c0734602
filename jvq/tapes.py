"""Losses on two tapes: what student and teacher multiplied on the same images, by address, and what they said.

A method of training writes ``loss(student, teacher, batch)`` over these and nothing else; here it becomes the objective
of :mod:`jvq.train`. Both models run side by side in one jitted step, each with its own dot.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jvq.core.dot import Dot, Where, dropping, float_dot, lowered, quantized, recording
from jvq.core.quantizer import Quantizer
from jvq.core.recipe import Forward, Sites

OUTPUT = "output"  #: where a tape has what the model gives; no address has this name
HEADS = "heads"  #: where it has what each head of classes gives, [b t o], if that is asked for
Tape = Mapping[str, jax.Array]
TapeLoss = Callable[[Tape, Tape, Mapping[str, Any]], tuple[jax.Array, dict[str, jax.Array]]]
"""``loss(student, teacher, batch) -> (scalar, metrics)``; the teacher's tape is empty where there is none."""
Prepare = Callable[[Key[Array, ""], jax.Array], jax.Array]
"""``prepare(key, uint8 images [b y x c])``: augmented and normalised."""


def nothing(address: str) -> bool:
    """Chooses no address."""
    return False


def on_tapes(
    loss: TapeLoss,
    forward: Forward,
    plan: Mapping[str, Quantizer],
    prepare: Prepare,
    *,
    where: Where = nothing,
    teacher: Forward | None = None,
    precision: str = "float32",
    drop: Mapping[str, float] | None = None,
    heads: bool = False,
) -> Callable[[Any, Any, Mapping[str, Any], Key[Array, ""]], tuple[jax.Array, dict[str, jax.Array]]]:
    """``objective.loss(trained, fixed, batch, key)`` of ``trained = {"params", "q"}``; ``fixed`` are the teacher's.

    Both tapes have the addresses that ``where`` chooses, as the float operands are before they are quantised.
    ``precision="bfloat16"`` rounds the operands of the student's products; sums, and everything between the products,
    stay float32, and so do the parameters. ``drop``: by site how often the student does without its product.
    ``heads``: both forwards give the logits of every head, and the output is their mean.
    """

    def run(trained: Any, fixed: Any, batch: Mapping[str, Any], key: Key[Array, ""]) -> Any:
        images = prepare(key, batch["image"])
        dot = _student(plan, trained["q"], precision)
        if drop:
            dot = dropping(drop, jax.random.fold_in(key, 1), dot)
        student = _played(forward, trained["params"], images, where, dot, heads)
        taught: Tape = {}
        if teacher is not None:
            taught = jax.lax.stop_gradient(_played(teacher, fixed, images, where, float_dot, heads))
        return loss(student, taught, batch)

    return run


def locator(
    forward: Forward, plan: Mapping[str, Quantizer], prepare: Prepare, known: Sites, precision: str = "float32"
) -> Callable[[Any, Mapping[str, Any], Key[Array, ""]], str]:
    """``locate(trained, batch, key)``: the first address of the forward pass that holds a value that is not finite."""

    @jax.jit
    def run(trained: Any, batch: Mapping[str, Any], key: Key[Array, ""]) -> Any:
        dot = _student(plan, trained["q"], precision)
        tape = _played(forward, trained["params"], prepare(key, batch["image"]), lambda address: True, dot)
        return {address: jnp.isfinite(x).all() for address, x in tape.items()}

    def locate(trained: Any, batch: Mapping[str, Any], key: Key[Array, ""]) -> str:
        finite = jax.device_get(run(trained, batch, key))
        order = [a for site in dict.fromkeys(o.site for o in known.values()) for a in _of(site, known)]
        return next((a for a in (*order, OUTPUT) if not finite[a]), "")

    return locate


def _of(site: str, known: Sites) -> list[str]:
    """A site's operands, then its product."""
    return [*(a for a, o in known.items() if o.site == site), f"{site}.y"]


def _student(plan: Mapping[str, Quantizer], qstate: Any, precision: str) -> Dot:
    return quantized(plan, qstate, float_dot if precision == "float32" else lowered(jnp.dtype(precision)))


def _played(
    forward: Forward, params: Any, images: jax.Array, where: Where, dot: Dot, heads: bool = False
) -> dict[str, jax.Array]:
    tape: dict[str, jax.Array] = {}
    output = forward(params, images, recording(tape, where, dot))
    return {**tape, OUTPUT: output.mean(axis=1), HEADS: output} if heads else {**tape, OUTPUT: output}
