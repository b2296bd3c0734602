"""Quantisers as JSON and back: every class, every field, nothing else."""

import dataclasses
import json

import pytest

import jvq.quantizers
from jvq.export import quantizer_text
from jvq.models import ARCHITECTURES, build
from jvq.quantizers import Grouped, Learned, Signs, Uniform

KINDS = [getattr(jvq.quantizers, name) for name in jvq.quantizers.__all__]
OTHERS = [
    Uniform(3, "sh", percentile=(1.0, 2.5)),
    Grouped(capacity=9),
    Grouped(capacity=None),
    Signs(smooth=False, size=0.3),
]


def test_every_quantiser_is_listed():
    assert list(quantizer_text.KINDS.values()) == KINDS
    assert list(quantizer_text.KINDS) == jvq.quantizers.__all__


@pytest.mark.parametrize("quantizer", [*(kind() for kind in KINDS), *OTHERS], ids=repr)
def test_a_quantiser_comes_back(quantizer):
    entry = json.loads(json.dumps(quantizer_text.written(quantizer)))
    assert quantizer_text.read(entry) == quantizer
    assert list(entry[1]) == [f.name for f in dataclasses.fields(quantizer)]
    assert hash(quantizer_text.read(entry)) == hash(quantizer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_of_another_type_is_refused(kind):
    for field in dataclasses.fields(kind):
        for value in ([{}], {}, "no such choice" if field.name != "along" and field.name != "keep" else 3):
            with pytest.raises(ValueError, match=f"{kind.__name__}: field '{field.name}' cannot be"):
                quantizer_text.read([kind.__name__, {field.name: value}])


def test_a_field_that_is_not_there_has_its_default():
    assert quantizer_text.read(["Learned", {"bits": 3}]) == Learned(3)


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        (True, float, False),
        (float("inf"), float, False),
        (1, bool, False),
        (None, int | None, True),
        ("a", int | None, False),
        ([1, 2], tuple[int, int], True),
        ([1], tuple[int, int], False),
        ([], tuple[float, ...], True),
        (["a"], tuple[float, ...], False),
        ("ab", tuple[str, ...], False),
    ],
)
def test_what_fits_a_type(value, hint, fits):
    assert quantizer_text.fits(value, hint) is fits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_spec_fits_its_own_types(architecture):
    spec = build(architecture, {"size": {"vit": "S/16", "swin": "T"}.get(architecture)}).spec
    fields = quantizer_text.checked(type(spec), json.loads(json.dumps(dataclasses.asdict(spec))), "Spec")
    assert build(architecture, fields).spec == spec
