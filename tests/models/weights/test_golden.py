"""Published architectures compute what their own code computes: logits and the output of every block.

Against files that ``tests/golden/make.py`` wrote, and, where torch and transformers are installed, against those
themselves with other weights.
"""

import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from jvq.core.dot import float_dot
from jvq.models.weights import open_weights

GOLDEN = Path(__file__).parents[2] / "golden"
spec = importlib.util.spec_from_file_location("make", GOLDEN / "make.py")
assert spec is not None
assert spec.loader is not None
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


def computed(folder, size):
    """Logits and blocks' outputs of the checkpoint in a folder, as a function of images."""
    checkpoint = open_weights(str(folder), model={"image": size})
    module = checkpoint.model.module

    # compiling takes longer than computing: as little of it as XLA can do
    @functools.partial(jax.jit, static_argnums=2, compiler_options={"xla_backend_optimization_level": 0})
    def run(params, images, dot):
        return module.apply(
            {"params": params},
            images,
            dot,
            capture_intermediates=lambda m, _: type(m).__name__ == "Block",
            mutable=["intermediates"],
        )

    def of(images):
        logits, kept = run(checkpoint.params, images, float_dot)
        found = {"/".join(k.key for k in path[:-2]): x for path, x in jax.tree.leaves_with_path(kept["intermediates"])}
        return logits, [found[name] for name in sorted(found)]

    return checkpoint, of


def compared(folder, size, golden):
    checkpoint, of = computed(folder, size)
    logits, blocks = of(golden["image"])
    wanted = [golden[f"block/{i}"] for i in range(sum(name.startswith("block/") for name in golden))]
    assert len(blocks) == len(wanted)
    for got, want in zip([logits, *blocks], [golden["logits"], *wanted], strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
    return checkpoint


@pytest.mark.parametrize("name", make.MODELS)
def test_the_golden_file_is_met(name, tmp_path):
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = {key: file[key] for key in file.files}
    for key in (make.WEIGHTS, make.CONFIG):
        (tmp_path / key).write_bytes(golden[key].tobytes())
    checkpoint = compared(tmp_path, make.MODELS[name][3], golden)
    assert checkpoint.notes["format"] == "Hugging Face"
    assert checkpoint.model.spec.classes == 3


@pytest.mark.filterwarnings("ignore")  # of torch and transformers
@pytest.mark.parametrize("name", make.MODELS)
def test_transformers_agrees_with_other_weights(name, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    compared(tmp_path, make.MODELS[name][3], make.produced(name, 100, tmp_path))
