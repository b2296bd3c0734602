"""What all methods that train have in common: which options are refused, the schedule, dropped branches, the words."""

import dataclasses
import importlib.util
import re

import numpy as np
import pytest

from jvq.core.recipe import Operand
from jvq.methods.learning import Course, Learning, drop


def unchecked(**fields):
    """The options without the check of types, which comes before theirs and only in tests."""
    made = Learning()
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


REFUSED = {
    "epochs": (0, "got 0, must be at least 1"),
    "batch": (0, "got 0, must be at least 1"),
    "save_every": (0, "got 0, must be at least 1"),
    "accumulate": (0, "got 0, must be at least 1"),
    "warmup": (1.0, "got 1.0, must be in [0, 1)"),
    "ema": (-0.1, "got -0.1, must be in [0, 1)"),
    "drop_path": (1.0, "got 1.0, must be in [0, 1)"),
    "holdout": (-1, "got -1, must be at least 0"),
    "steps": (-1, "got -1, must be at least 0"),
    "weight_decay": (-0.1, "got -0.1, must be at least 0"),
    "shift": (-1, "got -1, must be at least 0"),
    "learning_rate": (0.0, "got 0.0, must be positive"),
    "scale_rate": (-1.0, "got -1.0, must be positive"),
    "clip": (0.0, "got 0.0, must be positive"),
    "take": ("first", "got 'first' (there are: last, best)"),
    "precision": ("float16", "got 'float16' (did you mean 'bfloat16'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_cannot_be_is_refused_in_one_line(name):
    value, says = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(f"method.{name}: {says}")) as caught:
        unchecked(**{name: value}).__post_init__()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "says"), [
    (dict(take="best"), "method.take: 'best' needs images to tell it by, method.holdout"),
    (dict(batch=10, accumulate=4), "method.batch: got 10, must be a multiple of 4 (accumulate)"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused(options, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Learning(**options)


def test_tensorboard_is_an_extra(monkeypatch):
    there = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there.append(name) or None)
    with pytest.raises(ValueError, match=re.escape("pip install 'jvq[tensorboard]'")):
        Learning(tensorboard=True)
    assert there == ["tensorboardX"]
    assert not Learning().tensorboard


def test_the_ends_of_every_range_are_options():
    edge = dict(
        epochs=1, batch=1, save_every=1, warmup=0.0, ema=0.0, drop_path=0.0, holdout=1, steps=0, weight_decay=0.0,
        shift=0, clip=1e-9, take="best", precision="bfloat16", rule="lamb",
    )  # fmt: skip
    assert dataclasses.asdict(Learning(**edge)).items() >= edge.items()


def test_widths_are_the_same_unless_said_otherwise():
    assert [Learning(**w).widths() for w in (dict(bits=3), dict(bits=3, weight_bits=2), dict(bits=3, act_bits=32))] == [
        (3, 3),
        (2, 3),
        (3, 32),
    ]


def test_the_schedule_counts_whole_batches_or_the_steps():
    options = Learning(epochs=3, batch=8, warmup=0.2, scale_rate=0.1, ema=0.5, accumulate=2, rule="lamb", clip=1.0)
    schedule = options.schedule(30)
    assert schedule.steps == 3 * 3
    assert schedule.betas == (0.9, 0.999)
    for name in ("learning_rate", "warmup", "weight_decay", "clip", "rule", "scale_rate", "ema", "accumulate"):
        assert getattr(schedule, name) == getattr(options, name)
    for steps in (7, 70):
        assert dataclasses.replace(options, steps=steps).schedule(30) == dataclasses.replace(schedule, steps=steps)


def test_the_words_say_length_rule_and_result():
    plain = Learning(epochs=3, batch=8, learning_rate=2e-3, weight_decay=0.0).words()
    assert plain == {"training": "3 epochs of 8, adamw 0.002, decay 0", "result": "last checkpoint"}
    other = Learning(steps=7, rule="lamb", holdout=5, take="best", ema=0.9).words()
    assert other == {
        "training": "7 steps of 128, lamb 0.0005, decay 0.0001",
        "result": "best checkpoint, moving average 0.9",
    }


def test_a_course_is_the_whole_training_unless_said_otherwise():
    course = Course({})
    assert issubclass(Course, tuple)
    assert (course.name, course.begin, course.end) == ("", 0.0, 1.0)


def known_of(*sites):
    """Operands of these sites; only their names are looked at."""
    return {f"{s}.{r}": Operand(f"{s}.{r}", "bnd", (1, 2, 3), "bno", (1, 2, 3), None) for s in sites for r in "xw"}


def test_branches_are_dropped_more_often_the_deeper_they_are():
    """Stochastic depth: linear in the block, of the last product of either branch, whatever the stage."""
    blocks = ["stage0/block00", "stage0/block01", "stage1/block00"]
    inner = ("attn/qkv", "attn/qk", "attn/pv", "attn/proj", "mlp/fc1", "mlp/fc2")
    sites = [f"{block}/{op}" for block in blocks for op in inner]
    known = known_of("patch", *sites[:12], "stage0/merge/reduce", *sites[12:], "head")
    assert drop(Learning(), known) == {}
    found = drop(Learning(drop_path=0.2), known)
    assert [*found] == [f"{block}/{op}" for block in blocks for op in ("attn/proj", "mlp/fc2")]
    np.testing.assert_allclose([*found.values()], [0.0, 0.0, 0.1, 0.1, 0.2, 0.2])
    assert drop(Learning(drop_path=0.2), known_of(*sites[:6])) == {sites[3]: 0.0, sites[5]: 0.0}
