"""Adding a bias takes one file: everything finds it through the registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import biases
from biases import zoo

TOY = '''
"""A toy: the penalty grows with the square of the distance."""

import torch
from biases.backends import RelativeTerm
from biases.registry import register
from biases.traits import Traits


class SquaredDistance(RelativeTerm):
    def __init__(self, heads, strength):
        self.strength = strength / torch.arange(1, heads + 1, dtype=torch.float64)
        self.heads = heads

    def by_distance(self, distance, dtype):
        strength = self.strength.to(device=distance.device, dtype=dtype)
        return -strength.view(-1, *[1] * distance.ndim) * distance.square().to(dtype)


@register(
    "toy-squared-distance",
    family="toys",
    summary="penalty of the squared distance",
    traits=Traits(
        causal=True, normalisation="row", empty_row="zero", position="relative", fast_path="Toeplitz view",
        published="0000.00000 Eq. 1",
    ),
    parameters="0",
)
def toy(dim, heads, *, strength: float = 0.5):
    return {"causal": True, "bias": SquaredDistance(heads, strength)}
'''

USE = """
import json, sys
import torch
import toys.squared_distance
from biases import CharGPT, formulation, registry, specification, zoo
from biases.bench.workloads import LEVELS, Setting, names, prepare
from biases.testing import check_attention

torch.set_num_threads(1)
name = "toy-squared-distance"
layer = zoo.layer(name, 16, 2)
x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
q = torch.zeros(1, 2, 7, 8)
expected = specification(layer)(x.double())
row = zoo.get(name)
setting = Setting(batch=2, heads=2, length=9, head_dim=8, direction="forward+backward")
workloads = {}
for level, each in (("operator", name), ("layer", name), ("model", f"char-gpt[attention={name}]")):
    workload = prepare(level, each, setting)
    workload.check()
    workloads[level] = workload.formulations()[0]
results = check_attention(zoo.factory(name), max_examples=3)
try:
    zoo.get("toy-squared-distnace")
    suggestion = ""
except ValueError as error:
    suggestion = str(error)
print(json.dumps({
    "names": zoo.names(),
    "layers": zoo.names("layer"),
    "error": (layer(x).double() - expected).abs().max().item(),
    "strength": zoo.layer(name + "[strength=2.0]", 16, 2).bias[0].strength[0].item(),
    "fast_paths": zoo.fast_paths(name),
    "formulation": formulation(q, q, q, bias=layer.bias, causal=True).name,
    "levels": [level for level in LEVELS if any(name in each for each in names(level))],
    "workloads": workloads,
    "dense": layer.bias[0].dense(3, 3)[0, 0].tolist(),
    "traits": zoo.factory(name).traits.as_dict(),
    "row": [row.name, row.family, row.summary, row.parameters, row.traits.published],
    "source": zoo.source_file(name),
    "model": list(CharGPT(attention=name, layers=1, dim=16, heads=2, dropout=0.0)(torch.zeros(1, 4).long()).shape),
    "suggestion": suggestion,
    "battery": {result.property: result.status for result in results},
}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What an interpreter that imported the toy's one file sees."""
    package = tmp_path_factory.mktemp("elsewhere") / "toys"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "squared_distance.py").write_text(TOY)
    path = os.pathsep.join([str(package.parent), str(Path(biases.__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", USE],
        env={**os.environ, "PYTHONPATH": path, "BIASES_NATIVE": "0"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_zoo_lists_it(seen):
    assert set(seen["names"]) == {*zoo.names(), "toy-squared-distance"}
    assert "toy-squared-distance" in seen["layers"]
    assert "did you mean 'toy-squared-distance'" in seen["suggestion"]
    assert seen["source"].endswith("squared_distance.py")


def test_its_row_of_a_table_is_complete(seen):
    assert seen["row"] == [
        "toy-squared-distance",
        "toys",
        "penalty of the squared distance",
        "0",
        "0000.00000 Eq. 1",
    ]


def test_it_is_built_with_options_and_inside_the_model(seen):
    assert seen["strength"] == 2.0
    assert seen["model"] == [1, 4, 65]


def test_it_gets_specification_and_fast_path(seen):
    """Its one formula gives the dense form and the Toeplitz form, which agree in float32."""
    assert seen["dense"] == [[0.0, -0.5, -2.0], [-0.5, 0.0, -0.5], [-2.0, -0.5, 0.0]]
    assert seen["formulation"] == seen["fast_paths"]["cpu"]
    assert seen["fast_paths"]["cpu, fused"] == "toeplitz"
    assert seen["error"] < 1e-6


def test_it_is_benchmarked_at_every_level(seen):
    """Checked against its specification on the way; with what attention uses for it."""
    assert seen["levels"] == ["operator", "layer", "model", "training"]
    assert seen["workloads"] == dict.fromkeys(("operator", "layer", "model"), seen["fast_paths"]["cpu"])


def test_the_battery_checks_it_by_its_traits(seen):
    assert seen["traits"]["causal"] is True
    battery = seen["battery"]
    assert battery["future-independence"] == "passed"
    assert set(battery.values()) <= {"passed", "not_applicable"}


def test_this_interpreter_does_not_know_it():
    assert "toy-squared-distance" not in zoo.names()
