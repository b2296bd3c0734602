"""timm's names, in and out: every name of the published models has a row, dialects agree, errors say theirs."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jvq.models import build
from jvq.models.weights import Checkpoint, open_weights, save_timm, to_timm
from jvq.models.weights import spec as specs
from jvq.models.weights.opening import TABLES
from jvq.models.weights.table import choose, opened

WIDE = {"model": {"heads": 2}}  # 32 is no multiple of 64, so the heads must be said

# timm's model, its shapes, its number of parameters, fields of the Spec that follow
PUBLISHED = {
    "vit_base_patch16_224": ("vit", dict(dim=768), 86_567_656, {"heads": 12, "image": (224, 224), "patch": 16}),
    "deit_tiny_patch16_224": ("vit", dict(dim=192), 5_717_416, {"heads": 3, "depth": 12, "mlp_ratio": 4.0}),
    "deit_tiny_distilled_patch16_224": ("vit", dict(dim=192, dist=True), 5_910_800, {"distill_token": True}),
    "deit3_small_patch16_224": ("vit", dict(dim=384, layer_scale=True, placed=False), 22_059_496, {"registers": 0}),
    "vit_small_patch14_dinov2": (
        "vit",
        dict(dim=384, patch=14, image=518, classes=0, layer_scale=True),
        22_056_576 - 384,  # of the original repository, whose mask_token timm drops
        {"image": (518, 518), "classes": 0, "pool": "cls"},
    ),
    "vit_small_patch14_reg4_dinov2": (
        "vit",
        dict(dim=384, patch=14, image=518, classes=0, layer_scale=True, registers=4, placed=False),
        22_056_576 - 384 - 384 + 4 * 384,  # the class token's positions are in the class token
        {"registers": 4, "image": (518, 518)},
    ),
    "swin_tiny_patch4_window7_224": (
        "swin",
        dict(dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7),
        28_288_354,
        {"image": (224, 224), "window": 7, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    ),
}


@pytest.fixture
def opens(tmp_path):
    """Writes arrays to a file and opens it."""

    def of(arrays, **options):
        save_file({k: np.ascontiguousarray(x) for k, x in arrays.items()}, tmp_path / "a.safetensors", {"format": "pt"})
        return open_weights(str(tmp_path / "a.safetensors"), **options)

    return of


def same(a, b):
    assert a.model.spec == b.model.spec
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_are_known_by_every_name(name, timm_vit, timm_swin):
    kind, options, parameters, wanted = PUBLISHED[name]
    usual = {"depth": 12, "patch": 16, "image": 224, "classes": 1000}
    shapes = timm_swin(**{"classes": 1000, "patch": 4} | options) if kind == "swin" else timm_vit(**usual | options)
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters
    arrays = {key: np.broadcast_to(np.float16(0), shape) for key, shape in shapes.items()}
    table, arrays = choose(TABLES, arrays, "a.pth")
    assert (table.format, table.architecture) == ("timm", kind)
    file = opened(table, arrays, "a.pth")
    assert file.unexpected == file.ignored == []
    assert len(file.arrays) == len(shapes)
    found = specs.fields(file, {})
    assert {key: found[key] for key in wanted} == wanted


def test_dialects_of_the_vit(opens, timm_vit, arrays_of):
    arrays = arrays_of(timm_vit(layer_scale=True, registers=2))
    plain = opens(arrays, **WIDE)
    assert (plain.model.spec.registers, plain.model.spec.layer_scale) == (2, 1e-5)
    other = {k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): x for k, x in arrays.items()}
    same(opens(other, **WIDE), plain)
    dinov2 = {k.replace("reg_token", "register_tokens"): x for k, x in arrays.items()} | {
        "mask_token": np.zeros((1, 32))
    }
    chunked = {k.replace("blocks.", "blocks.0."): x for k, x in dinov2.items()}
    for dialect in (dinov2, chunked):
        found = opens(dialect, **WIDE)
        same(found, plain)
        assert found.notes["ignored"] == ["mask_token"]
    same(opens({f"module.backbone.{k}": x for k, x in arrays.items()}, **WIDE), plain)


def test_the_layout_of_each_kernel_by_hand(opens, timm_vit, arrays_of):
    arrays = arrays_of(timm_vit())
    params = opens(arrays, **WIDE).params
    d, s, h, e = 5, 1, 1, 7
    assert params["block01"]["attn"]["qkv"]["kernel"][d, s, h, e] == arrays["blocks.1.attn.qkv.weight"][32 + 16 + 7, 5]
    assert params["block01"]["attn"]["qkv"]["bias"][s, h, e] == arrays["blocks.1.attn.qkv.bias"][32 + 16 + 7]
    y, x, c = 1, 2, 0
    assert params["patch"]["kernel"][(y * 4 + x) * 3 + c, d] == arrays["patch_embed.proj.weight"][d, c, y, x]
    assert params["block00"]["mlp"]["fc1"]["kernel"][d, 9] == arrays["blocks.0.mlp.fc1.weight"][9, d]


def test_dialects_of_swin(opens, timm_swin, arrays_of):
    arrays = arrays_of(timm_swin())
    plain = opens(arrays)
    assert plain.model.spec.image == (8, 8)
    old = {
        k.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): x for k, x in arrays.items()
    }
    same(opens(old), plain)
    buffers = {
        "layers.0.blocks.1.attn_mask": np.zeros((4, 4, 4), np.float32),
        "layers.0.blocks.0.attn.relative_position_index": np.zeros((4, 4), np.int64),
    }
    found = opens(old | buffers)
    same(found, plain)
    assert found.notes["ignored"] == sorted(buffers)


def test_positions_of_patches_alone(opens, timm_vit, arrays_of):
    arrays = arrays_of(timm_vit(placed=False))
    pos = np.asarray(opens(arrays, **WIDE).params["pos"])
    assert not pos[:, 0].any()
    np.testing.assert_array_equal(pos[:, 1:], arrays["pos_embed"])


def test_positions_of_registers_go_into_the_registers(opens, timm_vit, arrays_of):
    arrays = arrays_of(timm_vit(registers=2))
    more = {**arrays, "pos_embed": arrays_of({"x": (1, 1 + 2 + 4, 32)}, 1)["x"]}
    params = opens(more, **WIDE).params
    np.testing.assert_array_equal(params["reg"], arrays["reg_token"] + more["pos_embed"][:, 1:3])
    np.testing.assert_array_equal(params["pos"], np.delete(more["pos_embed"], [1, 2], axis=1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dist": True},
        {"layer_scale": True, "placed": False},
        {"layer_scale": True, "placed": False, "registers": 4, "classes": 0},
    ],
    ids=["vit", "deit distilled", "deit3", "dinov2 registers"],
)
def test_timm_comes_back_bit_by_bit(options, opens, timm_vit, arrays_of):
    arrays = arrays_of(timm_vit(**options))
    back = to_timm(opens(arrays, **WIDE))
    assert set(back) == set(arrays)
    for name, x in arrays.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)


def test_swin_comes_back_bit_by_bit_in_a_file(opens, timm_swin, arrays_of, tmp_path):
    arrays, path = arrays_of(timm_swin()), tmp_path / "back.safetensors"
    save_timm(opens(arrays), path)
    back = load_file(path)
    assert set(back) == set(arrays)
    for name, x in arrays.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)
    assert not list(tmp_path.glob("*.part"))


def test_the_mean_before_the_norm(opens, timm_vit, arrays_of):
    arrays = {("fc_" if k.startswith("norm") else "") + k: x for k, x in arrays_of(timm_vit()).items()}
    found = opens(arrays, **WIDE)
    assert found.model.spec.pool == "mean"
    assert set(to_timm(found)) == set(arrays)


def renamed(a, b):
    return lambda arrays: {name.replace(a, b): x for name, x in arrays.items()}


ERRORS = {
    "missing": (
        lambda a: {k: x for k, x in a.items() if k != "blocks.1.attn.proj.weight"},
        "-blocks.1.attn.proj.weight",
    ),
    "renamed": (
        renamed("blocks.1.mlp.fc2.b", "blocks.1.mlp.fc_2.b"),
        "-blocks.1.mlp.fc2.bias .did you mean 'blocks.1.mlp.fc_2.bias'.*[+]blocks.1.mlp.fc_2.bias",
    ),
    "unexpected": (lambda a: {**a, "extra.weight": np.zeros(2)}, r"[+]extra.weight"),
    "shape": (
        lambda a: {**a, "norm.weight": np.zeros(7)},
        r"~norm.weight has shape \(7,\) in our axes, the model \(32,\)",
    ),
    "axes": (lambda a: {**a, "norm.weight": np.zeros((7, 2))}, r"~norm.weight has shape \(7, 2\), not axes d"),
    "no patches": (lambda a: {k: x for k, x in a.items() if "patch" not in k}, "-patch_embed.proj.weight"),
    "positions": (lambda a: {**a, "pos_embed": np.zeros((1, 7, 32))}, "7 rows is no square grid and 1 tokens"),
    "twice": (lambda a: {**a, "fc_norm.weight": a["norm.weight"]}, "norm.weight.* are both norm/scale"),
    "not finite": (lambda a: {**a, "norm.bias": np.full(32, np.nan)}, "not finite .* in norm/bias"),
    "MAP": (lambda a: {**a, "attn_pool.q.weight": np.zeros(2)}, "attention .MAP. is not built .attn_pool.q.weight"),
    "SwiGLU": (renamed("mlp.fc1", "mlp.w12"), r"SwiGLU is not built .* \(blocks.0.mlp.w12.bias"),
    "another model": (lambda a: {"conv1.weight": np.zeros((2, 2)), "bn1.bias": np.zeros(2)}, "names of no format"),
    "empty": (lambda a: {}, "names of no format that jvq knows .timm, Hugging Face, augreg, jvq.: none at all"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_file_that_does_not_fit_says_where_in_its_own_names(case, opens, timm_vit, arrays_of):
    change, says = ERRORS[case]
    with pytest.raises(ValueError, match=says) as caught:
        opens(change(arrays_of(timm_vit())), **WIDE)
    assert "a.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_swin_v2_is_refused(opens, timm_swin, arrays_of):
    arrays = arrays_of(timm_swin()) | {"layers.0.blocks.0.attn.logit_scale": np.zeros((1, 1, 1), np.float32)}
    with pytest.raises(ValueError, match="Swin V2 is not built"):
        opens(arrays)


def test_heads_must_be_known(opens, timm_vit, arrays_of):
    with pytest.raises(ValueError, match="how many heads share a width of 32 .* give model.heads"):
        opens(arrays_of(timm_vit()))
    assert opens(arrays_of(timm_vit(dim=64, depth=1))).model.spec.heads == 1
    with pytest.raises(ValueError, match="depth 12 was stated, its arrays have 1"):
        opens(arrays_of(timm_vit(dim=192, depth=1)), model={"size": "Ti"})


def test_the_configuration_beside_the_file(opens, timm_vit, arrays_of, tmp_path):
    timm = {"input_size": [3, 8, 8], "interpolation": "bilinear", "crop_pct": 0.9, "mean": [0.1] * 3, "std": [0.2] * 3}
    config = {"architecture": "vit_tiny", "num_classes": 3, "model_args": {"num_heads": 4}, "pretrained_cfg": timm}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = opens(arrays_of(timm_vit()))
    assert found.model.spec.heads == 4
    want = {"size": [8, 8], "resize": 8, "interpolation": "bilinear", "mean": [0.1] * 3, "std": [0.2] * 3}
    assert found.preprocess == want  # floor(8 / 0.9)
    assert found.notes["preprocess"] == "config.json"
    given = opens(arrays_of(timm_vit()), preprocess={"resize": 9, "std": (1, 1, 1)}).preprocess
    assert given == want | {"resize": 9, "std": [1, 1, 1]}
    with pytest.raises(ValueError, match="preprocess has no 'crop' .there are"):
        opens(arrays_of(timm_vit()), preprocess={"crop": 9})
    timm["interpolation"] = "lanczos"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'lanczos', which jvq has not"):
        opens(arrays_of(timm_vit()))


@pytest.mark.parametrize(
    ("options", "mean", "resize"),
    [({}, 0.5, 8), ({"dist": True}, 0.485, 8), ({"layer_scale": True, "image": 20}, 0.485, 20)],
)
def test_without_one_the_family_decides(options, mean, resize, opens, timm_vit, arrays_of):
    preprocess = opens(arrays_of(timm_vit(depth=1, **options)), **WIDE).preprocess
    assert (preprocess["mean"][0], preprocess["resize"], preprocess["interpolation"]) == (mean, resize, "bicubic")


def test_other_classes_are_a_new_head(opens, timm_vit, arrays_of):
    arrays = arrays_of(timm_vit(dist=True))
    new = opens(arrays, model={"heads": 2, "classes": 5})
    assert new.notes["head"] == "new"
    for head in ("head", "head_dist"):
        assert new.params[head]["kernel"].shape == (32, 5)
        assert not np.asarray(new.params[head]["kernel"]).any()
    none = opens(arrays, model={"heads": 2, "classes": 0})
    assert none.notes["head"] == "none"
    assert not {"head", "head_dist"} & set(none.params)
    kept = opens(arrays, model={"heads": 2, "classes": 3})
    assert "head" not in kept.notes


def test_another_image_resizes_positions_and_preprocessing(opens, timm_vit, timm_swin, arrays_of):
    found = opens(arrays_of(timm_vit()), model={"heads": 2, "image": 16})
    assert found.model.spec.image == (16, 16)
    assert found.params["pos"].shape == (1, 17, 32)
    assert (found.preprocess["size"], found.preprocess["resize"]) == ([16, 16], 16)
    assert opens(arrays_of(timm_swin()), model={"image": (12, 16)}).model.spec.image == (12, 16)


@pytest.mark.parametrize("field", [{"merged": True}, {"qk_norm": True}, {"clip": 3.0}, {"softmax": False}], ids=str)
def test_what_timm_cannot_compute_is_not_exported(field):
    model = build("vit", {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, **field})
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), model.shapes())
    with pytest.raises(ValueError, match=f"timm has no model with model.{next(iter(field))};"):
        to_timm(Checkpoint(model, params, {}, {}))
