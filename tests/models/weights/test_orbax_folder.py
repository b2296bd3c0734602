"""Orbax checkpoints of our tree: bare, below ``params``, and as steps of a manager."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jvq.models import build
from jvq.models.weights import open_weights

VIT = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3, "registers": 1}
SWIN = {"image": (8, 8), "patch": 2, "dim": 8, "depths": (1, 1), "heads": (1, 2), "window": 2, "classes": 3}


def random(architecture, spec):
    model, rng = build(architecture, spec), np.random.default_rng(0)
    return model, jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), model.shapes())


@pytest.mark.parametrize(("architecture", "spec"), [("vit", VIT), ("swin", SWIN)])
@pytest.mark.parametrize("nested", [False, True])
def test_a_tree_comes_back_with_its_spec(architecture, spec, nested, tmp_path):
    model, params = random(architecture, spec)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", {"params": params, "step": 3} if nested else params)
    found = open_weights(str(tmp_path / "a"))
    assert found.model.spec == model.spec
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    assert found.notes["format"] == "jvq"


def test_the_last_step_of_a_manager(tmp_path):
    _, params = random("vit", VIT)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (9, 10):
            manager.save(step, args=ocp.args.StandardSave(jax.tree.map(lambda x, s=step: x + s, params)))
    found = open_weights(str(tmp_path / "run"))
    np.testing.assert_array_equal(found.params["pos"], params["pos"] + 10)


def test_a_broken_checkpoint_is_one_line(tmp_path):
    (tmp_path / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as an orbax checkpoint"):
        open_weights(str(tmp_path))
