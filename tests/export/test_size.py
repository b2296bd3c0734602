"""The embedded models as packed files: within 3 % of what their numbers take, header and all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvq
from jvq.core.calibrate import fresh, leaf
from jvq.core.packed import Packed
from jvq.core.recipe import resolve, sites
from jvq.export import Deployment, load, save
from jvq.methods import minmax
from jvq.models.weights import EMBEDDED


@pytest.fixture(scope="module", params=EMBEDDED)
def opened(request):
    checkpoint = jvq.open_weights(request.param)
    return checkpoint, sites(checkpoint.model.forward, checkpoint.params, checkpoint.model.image)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_file_is_within_three_percent_of_its_numbers(opened, bits, tmp_path):
    """Numbers: bits a code, 4 bytes a float parameter, a scale and a value of a state. Zero points are not counted."""
    checkpoint, known = opened
    options = minmax.Options(weight_bits=bits, act_bits=8, edge_bits=None)
    plan, qstate = resolve(minmax.recipe(options, known), known), {}
    for address, quantizer in plan.items():
        operand = known[address]
        if operand.path is not None:
            qstate[address] = fresh(quantizer, leaf(checkpoint.params, operand), operand.letters)
        else:  # values do not matter
            x = jax.ShapeDtypeStruct(operand.shape, "float32")
            shapes = jax.eval_shape(lambda x, q=quantizer, o=operand: q.init(x, o.letters), x)
            qstate[address] = {name: jnp.full(s.shape, 0.37, jnp.float32) for name, s in shapes.items()}
    deployment = Deployment.of(checkpoint, plan, qstate, known, minmax.protocol(options))
    save(deployment, tmp_path / "a.safetensors")
    theory = sum(4 * x.size for x in jax.tree.leaves(deployment.qstate))
    packed = 0
    for x in jax.tree.leaves(deployment.params, is_leaf=lambda x: isinstance(x, Packed)):
        if isinstance(x, Packed):
            theory, packed = theory + bits * np.prod(x.shape) / 8 + 4 * x.scale.size, packed + 1
        else:
            theory += 4 * x.size
    assert packed == sum(o.path is not None for o in known.values())
    assert 1 < (tmp_path / "a.safetensors").stat().st_size / theory <= 1.03
    found = load(tmp_path / "a.safetensors")
    jax.tree.map(np.testing.assert_array_equal, (found.params, found.qstate), (deployment.params, deployment.qstate))
