"""A report as a run makes it, by hand."""

import copy

import pytest

COST = {"macs": 62_500_000, "base": 1_000_000_000, "find": 0, "choose": 0, "add": 0}
REPORT = {
    "schema": "jvq.report/1",
    "command": "python -m jvq.main --config configs/x.py",
    "commit": None,
    "versions": {"jax": "0.10.2"},
    "device": "1 x cpu (cpu)",
    "seed": 3,
    "seconds": {"load": 1.25, "fit": 2.5},
    "method": "igq",
    "model": {"name": "tiny", "architecture": "vit", "parameters": 10, "spec": {}},
    "data": {"name": "npz", "split": "test", "images": 200, "skipped": []},
    "protocol": {"weights": "4 bits", "rules": "none"},
    "bops_formula": "the formula",
    "rows": [
        {"name": "float", "top1": 0.9, "agreement": 1.0, "kl": 0.0, "bytes": 40960, "bops": 64 * 10**9, "cost": COST},
        {"name": "minmax", "top1": 0.5, "agreement": 0.6, "kl": 1.25, "bytes": 4096, "bops": 10**9, "cost": COST},
        {
            "name": "igq", "top1": 0.805, "agreement": 0.905, "kl": 0.03125, "bytes": 8192, "bops": 1_100_000_000,
            "cost": {**COST, "find": 10**7, "choose": 2 * 10**7, "add": 7 * 10**7},
        },
    ],
    "sites": {
        "patch.x": {"quantizer": "Uniform", "letters": "bnd", "bits": 8, "groups": None, "relative_error": 1.5e-5},
        "block00/mlp/fc1.x": {
            "quantizer": "Grouped", "letters": "bnd", "bits": 4, "groups": 8, "relative_error": 0.0123, "order": 0.875,
        },
    },
    "warnings": [],
}  # fmt: skip


@pytest.fixture
def report():
    return copy.deepcopy(REPORT)
