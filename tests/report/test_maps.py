import numpy as np
from PIL import Image

from jvq.report import draw_maps, figures_of, markdown, row_cells, row_head

ROW = {
    "correlation": 0.5,
    "median_correlation": 0.75,
    "mae": 0.125,
    "iou": 0.25,
    "nmse": 1.5,
    "bytes": 8192,
    "bops": 1e9,
    "cost": {"macs": 1, "base": 1, "find": 0, "choose": 0, "add": 0},
}


def test_a_row_of_maps_has_its_own_columns(report):
    rows = [{"name": "float", **ROW}, {"name": "minmax", **ROW}, {"name": "igq", **ROW}]
    assert row_head(rows) == ("model", "corr.", "median", "MAE", "IoU", "NMSE", "size", "GBOPs")
    assert row_cells(rows[2]) == ("igq", "0.5000", "0.7500", "0.1250", "0.250", "1.5000", "8 KiB", "1.000")
    text = markdown({**report, "rows": rows})
    assert "NMSE: squared error of the backbone's features" in text
    assert "top-1" not in text
    assert "without labels" not in text
    assert figures_of({**report, "rows": rows}) == [
        "igq is 1.0 times smaller than float and needs 1 times fewer bit-operations."
    ]


def test_a_spread_follows_its_number():
    row = {"name": "W4A4 igq", **ROW, "spread": {"nmse": 0.0123, "mae": 0.25}}
    assert row_cells(row)[3] == "0.1250 ±0.2500"
    assert row_cells(row)[5] == "1.5000 ±0.0123"
    labelled = {"name": "igq", "top1": 0.9, "agreement": 1.0, "kl": 0.0, "bytes": 1024, "bops": 1e9}
    assert row_cells({**labelled, "spread": {"top1": 0.001}})[1] == "90.00 ±0.10"


def test_the_picture_has_a_row_an_image_and_a_column_a_model(rng, tmp_path):
    images, maps = rng.uniform(size=(2, 8, 8, 3)), rng.uniform(size=(2, 8, 8))
    draw_maps(tmp_path / "maps.png", images, {"float": maps, "igq": maps, "minmax": 1 - maps})
    with Image.open(tmp_path / "maps.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1.5 * picture.height
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    assert [p.name for p in tmp_path.iterdir()] == ["maps.png"]
