"""The picture of attention: as many panels as maps, colours of the first row's values, and bars of the order."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label

from jvq.report import draw_attention
from jvq.report.attention import shown_layers

YELLOW, DARK, BLACK = (253, 231, 36), (68, 1, 84), (0, 0, 0)  #: the colours' ends: of soft maps, and of quantised ones
BLUE, ORANGE = (31, 119, 180), (255, 127, 14)
PANEL = 60 * 60  #: pixels: any map is larger, any letter, frame or end of a scale smaller


def drawn(path, maps, order):
    draw_attention(path, maps, order)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def areas(picture, colour, least=PANEL):
    """The sizes of the regions of a colour, of at least that many pixels."""
    regions, _ = label((np.abs(picture.astype(int) - colour) <= 1).all(axis=-1))
    sizes = np.bincount(regions.ravel())[1:]
    return sizes[sizes >= least]


def row(layers, value=0.25, seen=None):
    """Maps that are one colour."""
    maps = {a: np.full((5, 5), value, np.float32) for a in layers}
    return maps if seen is None else maps | {f"{a}^": np.full((5, 5), seen, np.float32) for a in layers}


LAYERS = [f"block{i:02d}/attn/pv.p" for i in range(6)]
ORDER = {"scale": dict.fromkeys(LAYERS, 0.2), "bivit": dict.fromkeys(LAYERS, 0.8)}


def test_every_map_is_a_panel_and_quantised_ones_stand_beside(tmp_path):
    two = LAYERS[:2]
    plain = drawn(tmp_path / "plain.png", {"float": row(two), "scale": row(two), "bivit": row(two)}, ORDER)
    assert len(areas(plain, YELLOW)) == 6
    assert len(areas(plain, BLACK)) == 0
    maps = {"float": row(two), "scale": row(two, seen=0.5), "bivit": row(two, seen=0.5)}
    both = drawn(tmp_path / "both.png", maps, ORDER)
    assert len(areas(both, YELLOW)) == 6
    assert len(areas(both, BLACK)) == 4, "the float model's are not quantised"
    assert both.shape[0] == plain.shape[0]
    assert both.shape[1] > 1.4 * plain.shape[1]
    less = drawn(tmp_path / "less.png", {n: maps[n] for n in ("float", "scale")}, ORDER)
    assert less.shape[0] < both.shape[0] - 100, "a row less"
    assert len(areas(less, YELLOW)) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both.png", "less.png", "plain.png"]


@pytest.mark.parametrize(
    ("count", "want"), [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [0, 2, 4]), (6, [0, 2, 5])]
)
def test_of_many_layers_the_first_the_middle_and_the_last_are_shown(count, want):
    assert shown_layers(LAYERS[:count]) == [LAYERS[i] for i in want]


def test_the_layers_that_are_shown_are_drawn(tmp_path):
    picture = drawn(tmp_path / "six.png", {"float": row(LAYERS), "scale": row(LAYERS, seen=0.5)}, ORDER)
    assert len(areas(picture, YELLOW)) == 6
    assert len(areas(picture, BLACK)) == 3


def test_the_first_row_sets_the_colours_of_its_layer(tmp_path):
    one, two = LAYERS[:2]
    maps = {"float": row([one], 0.5) | row([two], 0.002), "scale": row([one], 0.002) | row([two], 0.5)}
    maps["float"][one][0] = 0.0
    picture = drawn(tmp_path / "x.png", maps, ORDER)
    assert len(areas(picture, YELLOW)) == 3, "both of the float model, and what is above its largest value"
    dim = {"float": row([one]), "scale": row([one], 0.0)}
    assert len(areas(drawn(tmp_path / "y.png", dim, ORDER), DARK)) == 1


def test_a_row_that_lacks_a_layer_leaves_its_place_empty(tmp_path):
    maps = {"float": row(LAYERS[:3]), "scale": row(LAYERS[1:3])}
    assert len(areas(drawn(tmp_path / "x.png", maps, ORDER), YELLOW)) == 5


def test_bars_are_as_high_as_the_order_agrees(tmp_path):
    maps = {"float": row(LAYERS[:1]), "scale": row(LAYERS[:1], 0.1), "bivit": row(LAYERS[:1], 0.1)}
    picture = drawn(tmp_path / "x.png", maps, ORDER)
    low, high = (areas(picture, colour, 400) for colour in (BLUE, ORANGE))
    assert len(low) == len(high) == len(LAYERS)
    assert high.mean() / low.mean() == pytest.approx(4, rel=0.1)


def test_the_same_maps_give_the_same_picture_and_others_another(rng, tmp_path):
    maps = {name: {LAYERS[0]: rng.uniform(size=(5, 5))} for name in ("float", "scale")}
    maps["scale"][f"{LAYERS[0]}^"] = np.where(maps["scale"][LAYERS[0]] > 0.5, 0.75, 0.0)
    for name in ("one", "again"):
        draw_attention(tmp_path / f"{name}.png", maps, ORDER)
    maps["scale"][f"{LAYERS[0]}^"][2, 3] += 0.5
    draw_attention(tmp_path / "other.png", maps, ORDER)
    one, again, other = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other
