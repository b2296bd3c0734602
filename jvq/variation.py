"""How much a model's weights and activations vary: what makes transformers hard to quantise at few bits.

    python -m jvq.variation --weights=fashion_vit [--out=DIR]

Source: Huang et al. 2024 (VVTQ), specification section 2.2. SDAM is the standard deviation, over groups, of the mean
absolute value in each group: heads for what has heads, else output channels of weights and channels of activations.
It scales with the tensor, so the quotient by its mean is shown too, with two measures of outliers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Float

from jvq.core import axes
from jvq.core.calibrate import leaf
from jvq.core.dot import packed_dot, recording
from jvq.core.recipe import Forward, Operand, Sites, sites
from jvq.mistakes import one_line

FLAGS = flags.FLAGS
if __name__ == "__main__":
    flags.DEFINE_string("weights", "fashion_vit", "an embedded checkpoint, a name or a path")
    flags.DEFINE_string("data", "fashion", "fashion, folder or npz: where 32 images for the activations come from")
    flags.DEFINE_string("dir", None, "of that data")
    flags.DEFINE_string("out", None, "folder for variation.png")


class Variation(NamedTuple):
    """Of one operand."""

    groups: int
    sdam: float  # standard deviation over the groups of the mean absolute value
    relative: float  # the same over its mean
    reach: float  # max |x - mean| in standard deviations
    kurtosis: float  # of all values; 3 for a normal distribution


def variation(x: Float[np.ndarray, "..."], letters: str, groups: str) -> Variation:
    """The variation of ``x`` [letters] among its indices along ``groups``, float64."""
    wide = np.asarray(x, np.float64)
    means = np.abs(wide).mean(axis=axes.others(groups, letters)).reshape(-1)
    centred = wide - wide.mean()
    power = np.square(centred).mean()
    if not power:
        return Variation(means.size, 0.0, 0.0, 0.0, 0.0)
    sdam = float(means.std())
    reach = float(np.abs(centred).max() / np.sqrt(power))
    return Variation(means.size, sdam, sdam / float(means.mean()), reach, float((centred**4).mean() / power**2))


def groups_of(o: Operand) -> str:
    """The axes that tell an operand's groups apart: heads (of query, key and value), else its channels.

    Of attention maps also the keys: every row sums to 1, so that heads do not differ in their mean.
    """
    if o.role == "p":
        return axes.ordered("hk", o.letters)
    if "h" in o.letters:
        return axes.ordered({"s", "h"} & set(o.letters), o.letters)
    return "".join(a for a in o.letters if a not in o.contracted) if o.path is not None else o.letters[-1]


def measure(forward: Forward, params: Any, images: Float[np.ndarray, "b y x c"], known: Sites) -> dict[str, Variation]:
    """By address the variation of every operand of the float model: weights, and activations on ``images``."""

    @jax.jit
    def run(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        tape: dict[str, jax.Array] = {}
        forward(params, x, recording(tape, lambda a: a in known and known[a].path is None, packed_dot()))
        return tape

    tape = jax.device_get(run(params, jnp.asarray(images)))
    return {
        a: variation(np.asarray(leaf(params, o)) if o.path is not None else tape[a], o.letters, groups_of(o))
        for a, o in known.items()
    }


def draw(path: Path, found: Mapping[str, Variation]) -> None:
    """Writes a picture: relative SDAM (above) and kurtosis (below) of every operand."""
    from jvq.report.picture import figure, save

    made = figure(max(6.0, 0.2 * len(found) + 1.5), 5.0)
    above, below = made.subplots(2, 1, sharex=True)
    places = np.arange(len(found))
    colours = ["tab:orange" if "/attn/" in a else "tab:blue" if "/mlp/" in a else "gray" for a in found]
    above.bar(places, [v.relative for v in found.values()], color=colours)
    above.set_ylabel("SDAM / mean", fontsize=8)
    above.set_title("variation among groups (orange: attention, blue: MLP)", fontsize=8)
    below.bar(places, [v.kurtosis for v in found.values()], color=colours)
    below.set_ylabel("kurtosis", fontsize=8)
    below.set_yscale("log")
    below.set_xticks(places, [*found], rotation=90, fontsize=6)
    for panel in (above, below):
        panel.tick_params(labelsize=6)
    save(made, path)


def main(argv: list[str]) -> None:
    """Shows the table, and writes the picture where ``--out`` names a folder."""
    if len(argv) > 1:
        raise ValueError(f"unexpected argument '{argv[1]}': options start with --")
    import rich.box
    from rich.table import Table

    from jvq.data import Preprocess, open_source, sample
    from jvq.models.weights import open_weights
    from jvq.report import Console

    checkpoint = open_weights(FLAGS.weights)
    forward, params = checkpoint.model.forward, checkpoint.params
    source = open_source(FLAGS.data, "train", FLAGS.dir)
    images = sample(source, Preprocess.from_dict(checkpoint.preprocess), min(32, len(source)), 0).images
    found = measure(forward, params, images, sites(forward, params, checkpoint.model.image))
    table = Table(box=rich.box.SIMPLE_HEAD)
    for i, name in enumerate(("address", "groups", "SDAM", "SDAM / mean", "max / std", "kurtosis")):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for address, v in found.items():
        table.add_row(address, str(v.groups), *(f"{x:.3g}" for x in v[1:]))
    Console().out.print(table)
    if FLAGS.out is not None:
        folder = Path(FLAGS.out)
        folder.mkdir(parents=True, exist_ok=True)
        draw(folder / "variation.png", found)


def entry() -> None:
    """``python -m jvq.variation``."""

    def guarded(argv: list[str]) -> None:
        with one_line(ValueError):
            main(argv)

    app.run(guarded)


if __name__ == "__main__":
    entry()
