"""A config shows every option, and a mistake in one is found before anything is computed."""

import dataclasses

import ml_collections
import pytest

from jvq.config import Data, Run, config, runs, typed
from jvq.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_every_option_is_shown_so_that_it_can_be_overridden(method):
    cfg = config("x", method)
    options = {f.name for f in dataclasses.fields(METHODS[method].Options)} - {"seed"}  # the run's seed is the method's
    assert set(cfg.method) == {"name"} | options
    assert set(cfg.data) == {f.name for f in dataclasses.fields(Data)}
    assert set(cfg) == {f.name for f in dataclasses.fields(Run)} - {"method_name"}


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_come_back_typed(method):
    run = typed(config("x", method, weights="a"))
    assert run == Run("x", method, METHODS[method].Options(), weights="a")


def test_options_given_in_a_file_and_changed_on_the_command_line_arrive():
    cfg = config("x", "igq", weights="a", resolution=12, data=dict(name="npz", images=5), rules="*.w=8", seed=3, bits=6)
    cfg.lock()
    cfg.method.groups = 4
    cfg.method.act_bits = 5  # shown as a placeholder, None until it is set
    cfg.data.dir = "somewhere"
    run = typed(cfg)
    assert (run.method.bits, run.method.groups, run.method.act_bits, run.method.weight_bits) == (6, 4, 5, None)
    assert run.data == Data("npz", "somewhere", images=5)
    assert (run.resolution, run.rules, run.weights) == (12, "*.w=8", "a")
    with pytest.raises(AttributeError, match="grups"):
        cfg.method.grups = 3
    with pytest.raises(TypeError):
        cfg.method.act_bits = "five"


def test_the_runs_seed_is_the_methods():
    assert typed(config("x", "igq", seed=7)).method.seed == 7
    assert typed(config("x", "igq")).method.seed == 0


def test_model_and_preprocess_come_back_as_plain_mappings():
    cfg = config("x", "supervised", model=dict(image=(8, 8), dim=16), preprocess=dict(size=(8, 8)))
    run = typed(cfg)
    assert dict(run.model) == {"image": (8, 8), "dim": 16}
    assert type(run.preprocess) is dict


def test_whole_numbers_are_made_floats_where_a_float_is_wanted():
    value = typed(config("x", "minmax", percentile=1)).method.percentile
    assert (value, type(value)) == (1.0, float)


def test_rows_share_the_method_s_widths_and_seed():
    cfg = config("x", "igq", rows={"a": {"name": "minmax"}, "b": {"name": "igq", "bits": 8, "groups": 3}}, seed=5)
    cfg.method.bits = 6
    cfg.method.act_bits = 3
    cfg.rows.b.groups = 2
    rows = typed(cfg).rows
    assert rows["a"] == ("minmax", METHODS["minmax"].Options(bits=6, act_bits=3))
    assert rows["b"] == ("igq", METHODS["igq"].Options(bits=8, act_bits=3, groups=2, seed=5))


def test_rows_of_the_same_method_differ_in_what_they_name_alone():
    cfg = config("x", "igq", rows={"a": {"name": "igq", "mstep": "mean"}, "b": {"name": "minmax"}}, mstep="cover")
    cfg.method.groups = 3
    rows = typed(cfg).rows
    assert rows["a"] == ("igq", METHODS["igq"].Options(groups=3, mstep="mean"))
    assert rows["b"] == ("minmax", METHODS["minmax"].Options(bits=typed(cfg).method.bits))


PLAIN = {"name": "x", "method": {"name": "igq"}}
MISTAKES = {
    "unknown method": (lambda: config("x", "ingq"), "method 'ingq' is not known .did you mean 'igq'"),
    "unknown option": (lambda: config("x", "igq", bitz=4), "no option 'method.bitz' .did you mean 'bits'"),
    "unknown data option": (
        lambda: config("x", "igq", data=dict(dirr="a")),
        "no option 'data.dirr' .did you mean 'dir'",
    ),
    "text for a number": (lambda: config("x", "igq", bits="4"), "method.bits must be int, got '4'"),
    "float for an int": (lambda: config("x", "igq", bits=4.0), "method.bits must be int, got 4.0"),
    "bool for an int": (lambda: config("x", "igq", bits=True), "method.bits must be int, got True"),
    "int for a bool": (lambda: config("x", "igq", sequential=1), "method.sequential must be bool, got 1"),
    "None for an int": (lambda: config("x", "igq", bits=None), "method.bits must be int, got None"),
    "text for int or None": (lambda: config("x", "igq", act_bits="4"), "method.act_bits must be int or None"),
    "unknown choice": (lambda: config("x", "igq", qkv="heads"), "method.qkv: got 'heads' .did you mean 'head'"),
    "no images": (lambda: config("x", "igq", data=dict(images=0)), "data.images must be at least 1, got 0"),
    "no batch": (lambda: config("x", "igq", data=dict(batch=0)), "data.batch must be at least 1, got 0"),
    "no calibration": (lambda: config("x", "igq", data=dict(calibration=-1)), "data.calibration must be at least 1"),
    "no pixels": (lambda: typed(config("x", "igq", resolution=-4)), "resolution must be at least 1, got -4"),
    "negative seed": (lambda: typed(config("x", "igq", seed=-1)), "seed must be at least 0, got -1"),
    "weights no text": (lambda: typed({**PLAIN, "weights": 3}), "weights must be str, got 3"),
    "no epochs": (lambda: config("x", "supervised", epochs=0), "method.epochs: got 0, must be at least 1"),
    "no such distillation": (
        lambda: config("x", "supervised", distillation="hrad"),
        "method.distillation: got 'hrad' .did you mean 'hard'",
    ),
    "smoothing of one": (lambda: config("x", "supervised", smoothing=1.0), "method.smoothing: got 1.0, must be in"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_says_what_where_got_and_the_nearest_right_thing(case):
    make, says = MISTAKES[case]
    with pytest.raises(ValueError, match=says):
        make()


WRONG_TREES = {
    "not a mapping": (5, "get_config must return what jvq.config.config makes, got int"),
    "no method": ({"name": "x"}, "method.name is missing .there are: bivit, igq"),
    "method no mapping": ({"name": "x", "method": "igq"}, "method must be a mapping of options, got 'igq'"),
    "data no mapping": ({**PLAIN, "data": 3}, "data must be a mapping of options, got 3"),
    "no name": ({"method": {"name": "igq"}}, "config: name is missing"),
    "unknown key": ({**PLAIN, "weight": ""}, "no option 'weight' .did you mean 'weights'"),
    "unknown method": ({"name": "x", "method": {"name": "minmx"}}, "'minmx' is not known .did you mean 'minmax'"),
}


@pytest.mark.parametrize("case", WRONG_TREES)
@pytest.mark.parametrize("kind", [dict, ml_collections.ConfigDict])
def test_a_config_written_by_hand_is_checked_too(case, kind):
    tree, says = WRONG_TREES[case]
    with pytest.raises(ValueError, match=says):
        typed(kind(tree) if isinstance(tree, dict) else tree)


def test_a_plain_mapping_will_do():
    assert typed(PLAIN) == typed(config("x", "igq"))


def test_parts_are_runs_that_differ_in_what_they_say():
    parts = {"a": {"weights": "x", "data": {"images": 5}}, "b": {"method": {"bits": 6}, "widths": "W4A4"}}
    made = config("whole", "igq", weights="w", bits=4, groups=3, data={"batch": 7}, parts=parts)
    made.data.calibration = 9  # as from the command line
    found = runs(made)
    assert [*found] == ["a", "b"]
    assert [run.name for run in found.values()] == ["whole_a", "whole_b"]
    a, b = found.values()
    assert (a.weights, b.weights) == ("x", "w")
    assert (a.data.images, a.data.batch, b.data.images, b.data.calibration) == (5, 7, None, 9)
    assert (a.method.bits, b.method.bits, b.method.groups) == (4, 6, 3)
    assert (a.widths, b.widths) == ("", "W4A4")
    assert not a.parts
    assert [*runs(config("single", "igq"))] == [""]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"wieghts": "x"}, "no option 'wieghts'.*weights"),
        ({"method": {"bist": 3}}, "no option 'method.bist'.*bits"),
        ({"data": 3}, "data must be a mapping"),
        (3, "parts.one must be a mapping"),
    ],
)
def test_a_mistake_in_a_part_is_found_before_anything_runs(changes, says):
    made = config("whole", "igq", weights="w")
    made.parts = ml_collections.ConfigDict({"one": changes})
    with pytest.raises(ValueError, match=says):
        runs(made)
