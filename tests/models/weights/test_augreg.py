"""The names of vision_transformer and big_vision: the dialects of one model give the same checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.models.weights import open_weights

D, H, E, HIDDEN, DEPTH = 8, 2, 4, 16, 2


def tree(rng, **more):
    """The arrays of an AugReg file of a tiny model."""
    shapes = {"cls": (1, 1, D), "embedding/kernel": (4, 4, 3, D), "embedding/bias": (D,), "head/kernel": (D, 3)}
    shapes |= {"head/bias": (3,), "Transformer/posembed_input/pos_embedding": (1, 5, D)}
    shapes |= {f"Transformer/encoder_norm/{end}": (D,) for end in ("scale", "bias")}
    for i in range(DEPTH):
        at = f"Transformer/encoderblock_{i}"
        shapes |= {f"{at}/LayerNorm_{n}/{end}": (D,) for n in (0, 2) for end in ("scale", "bias")}
        for name in ("query", "key", "value"):
            shapes[f"{at}/MultiHeadDotProductAttention_1/{name}/kernel"] = (D, H, E)
            shapes[f"{at}/MultiHeadDotProductAttention_1/{name}/bias"] = (H, E)
        shapes[f"{at}/MultiHeadDotProductAttention_1/out/kernel"] = (H, E, D)
        shapes[f"{at}/MultiHeadDotProductAttention_1/out/bias"] = (D,)
        for n, (d, o) in enumerate(((D, HIDDEN), (HIDDEN, D))):
            shapes |= {f"{at}/MlpBlock_3/Dense_{n}/kernel": (d, o), f"{at}/MlpBlock_3/Dense_{n}/bias": (o,)}
    return {k: (rng.integers(-100, 100, s) / 128).astype(np.float32) for k, s in (shapes | more).items()}


@pytest.fixture
def opens(tmp_path):
    def of(arrays):
        np.savez(tmp_path / "B_16.npz", **arrays)
        return open_weights(str(tmp_path / "B_16.npz"))

    return of


def newer(arrays):
    """big_vision's names, positions without the class token."""
    names = {"LayerNorm_2": "LayerNorm_1", "Attention_1": "Attention_0", "MlpBlock_3": "MlpBlock_0"}
    for old, new in {**names, "Transformer/posembed_input/pos_embedding": "pos_embedding"}.items():
        arrays = {name.replace(old, new): x for name, x in arrays.items()}
    return {**arrays, "pos_embedding": arrays["pos_embedding"][:, 1:]}


def scanned(arrays):
    """All blocks in one array, the depth in front."""
    first = "Transformer/encoderblock_0/"
    of_all = {name.removeprefix(first) for name in arrays if name.startswith(first)}
    blocks = {
        f"Transformer/encoderblock/{n}": np.stack([arrays[f"Transformer/encoderblock_{i}/{n}"] for i in range(DEPTH)])
        for n in of_all
    }
    return {name: x for name, x in arrays.items() if "encoderblock" not in name} | blocks


def test_a_file_of_augreg_by_hand(opens, rng):
    arrays = tree(rng)
    found = opens(arrays)
    s = found.model.spec
    assert (s.image, s.patch, s.heads, s.mlp_ratio, s.classes, s.eps) == ((8, 8), 4, H, 2.0, 3, 1e-6)
    attn, at = found.params["block01"]["attn"], "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    for i, name in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(attn["qkv"]["kernel"][:, i], arrays[f"{at}/{name}/kernel"])
        np.testing.assert_array_equal(attn["qkv"]["bias"][i], arrays[f"{at}/{name}/bias"])
    np.testing.assert_array_equal(attn["proj"]["kernel"].reshape(H, E, D), arrays[f"{at}/out/kernel"])
    np.testing.assert_array_equal(found.params["patch"]["kernel"].reshape(4, 4, 3, D), arrays["embedding/kernel"])
    assert found.preprocess["mean"] == [0.5] * 3
    assert found.notes["format"] == "augreg"


@pytest.mark.parametrize("root", ["opt/target/", "params/", "params/img/"])
def test_dialects(root, opens, rng):
    arrays = tree(rng)
    plain = opens(arrays)
    rooted = {f"{root}{k}": x for k, x in arrays.items()} | {"opt/state/step": np.array(3)}
    rooted |= {"params/t": np.array(1.0)} if root == "params/img/" else {}  # a two-tower model's temperature
    jax.tree.map(np.testing.assert_array_equal, opens(rooted).params, plain.params)
    no_class = {
        **arrays,
        "Transformer/posembed_input/pos_embedding": arrays["Transformer/posembed_input/pos_embedding"],
    }
    no_class["Transformer/posembed_input/pos_embedding"][:, 0] = 0
    plain = opens(no_class)
    for dialect in (
        newer(no_class),
        scanned(newer(no_class)),
        {root + k: x for k, x in scanned(newer(no_class)).items()},
    ):
        jax.tree.map(np.testing.assert_array_equal, opens(dialect).params, plain.params)


def test_bfloat16_is_stored_without_its_name(opens, rng):
    arrays = tree(rng)
    halves = {name: x.astype(jnp.bfloat16).view("V2") for name, x in arrays.items()}
    jax.tree.map(np.testing.assert_array_equal, opens(halves).params, opens(arrays).params)


def test_the_layer_before_the_head_of_imagenet_21k(opens, rng):
    found = opens(tree(rng, **{"pre_logits/kernel": (D, 6), "pre_logits/bias": (6,), "head/kernel": (6, 3)}))
    assert found.model.spec.representation == 6
    assert found.params["pre_logits"]["kernel"].shape == (D, 6)
    assert found.params["head"]["kernel"].shape == (6, 3)


def test_a_model_without_class_token_averages_normalised_patches(opens, rng):
    arrays = {name: x for name, x in newer(tree(rng)).items() if name != "cls"}
    found = opens(arrays)
    assert (found.model.spec.pool, found.model.spec.class_token) == ("normed_mean", False)
    np.testing.assert_array_equal(found.params["pos"], arrays["pos_embedding"])


@pytest.mark.parametrize("token", [True, False])
def test_positions_that_are_not_stored_are_sines_and_cosines(token, tmp_path, rng):
    left_out = {"pos_embedding"} | (set() if token else {"cls"})
    arrays = {name: x for name, x in newer(tree(rng)).items() if name not in left_out}
    np.savez(tmp_path / "S_16.npz", **arrays)
    pos = np.asarray(open_weights(str(tmp_path / "S_16.npz"), model={"image": (12, 12)}).params["pos"])[0]
    assert pos.shape == (9 + token, D)
    assert not pos[: int(token)].any()
    for n, row in enumerate(pos[int(token) :]):  # MoCo v3's formula by hand, width 8: rates 1 and 1e-4
        y, x = divmod(n, 3)
        want = [f(at * rate) for at in (x, y) for f in (np.sin, np.cos) for rate in (1, 1e-4)]
        np.testing.assert_allclose(row, want, atol=1e-6)


def test_what_cannot_be_computed_is_refused(opens, rng):
    arrays = tree(rng)
    with pytest.raises(ValueError, match=r"pooling by attention .MAP. is not built .MAPHead_0/probe"):
        opens(newer(arrays) | {"MAPHead_0/probe": np.zeros((1, 1, D))})
    with pytest.raises(ValueError, match="-Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel"):
        opens(
            {
                name: x
                for name, x in arrays.items()
                if not name.endswith("block_1/MultiHeadDotProductAttention_1/key/kernel")
            }
        )
    with pytest.raises(ValueError, match="cannot be read as npz"):
        opens({"a": np.array({}, dtype=object)})
