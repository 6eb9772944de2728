"""The script of a failure runs as printed, wherever the factory is defined."""

from __future__ import annotations

import functools
import importlib
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import biases.testing
from biases.testing import Decay, Result, Traits, check_attention, kinds
from biases.testing.script import how_to_import, reproduce
from biases.testing.subject import Subject

ROOT = Path(biases.testing.__file__).parents[2]
FILL_IN = "from your_module import your_factory as make_layer"
FACTORIES = '''
import torch
from torch import nn


class Leaky(nn.Module):
    """A causal mean that reaches one token too far."""

    def __init__(self, dim, heads):
        super().__init__()
        self.value = nn.Linear(dim, dim)

    def forward(self, x):
        seen = torch.ones(x.shape[1], x.shape[1]).tril(1).to(x)
        return (seen / seen.sum(-1, keepdim=True)) @ self.value(x)


class Gate(Leaky):
    """Gates below their range."""

    def __init__(self, dim, heads, act=torch.relu):
        super().__init__(dim, heads)
        self.act = act

    def forward(self, x):
        return -1 - self.act(self.value(x)).square()


def shifted(q, k, v, extra=None):
    return v


class Outer:
    class Inner(Leaky):
        pass

    @staticmethod
    def make(dim, heads):
        return Leaky(dim, heads)

    @classmethod
    def build(cls, dim, heads):
        return cls.Inner(dim, heads)


class Derived(Outer):
    pass


def local():
    def make_layer(dim, heads):
        return Leaky(dim, heads)

    return make_layer
'''
CHECK = """

if __name__ == "__main__":
    from biases.testing import Traits, check_attention

    torch.set_num_threads(1)
    (result,) = check_attention(
        {factory}, Traits(causal=True), properties=["future-gradient"], max_examples=5, widths=[(8, 2)]
    )
    print(result.reproduce)
    print("#", result.message.splitlines()[0])
"""


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
        cwd=folder,
    )


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "nested_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("nested_factories")
    del sys.modules["nested_factories"]


def leak(make_layer) -> Result:
    arguments = {"properties": ["future-gradient"], "max_examples": 5, "widths": [(8, 2)]}
    (result,) = check_attention(make_layer, Traits(causal=True), **arguments)
    assert result.status == "failed"
    return result


@pytest.mark.parametrize("path", ["Outer.make", "Outer.Inner", "Outer.build"])
def test_a_factory_inside_a_class_is_reached_by_its_path(factories, path: str, tmp_path: Path) -> None:
    result = leak(functools.reduce(getattr, path.split("."), factories))
    assert f"import nested_factories; make_layer = nested_factories.{path}\n" in result.reproduce
    (tmp_path / "reproduce.py").write_text(result.reproduce)
    assert f"AssertionError: {result.message}" in run("reproduce.py", folder=tmp_path).stderr


def test_what_no_path_leads_to_is_left_to_be_filled_in(factories, monkeypatch: pytest.MonkeyPatch) -> None:
    assert how_to_import(factories.Leaky) == "from nested_factories import Leaky as make_layer"
    unreachable = [factories.local(), lambda dim, heads: None, functools.partial(factories.local())]
    # The path of an inherited class method leads to that of the base, which builds something else.
    unreachable.append(factories.Derived.build)
    for make_layer in unreachable:
        assert how_to_import(make_layer).startswith(FILL_IN)
    partial = "from functools import partial; make_layer = partial(make_layer, reach=2)"
    assert how_to_import(functools.partial(factories.Leaky, reach=2)).endswith(f"as make_layer\n{partial}")
    replaced = factories.Leaky
    monkeypatch.setattr(factories, "Leaky", factories.local())
    assert how_to_import(replaced).startswith(FILL_IN)


@pytest.mark.parametrize("factory", ["Leaky", "Outer.make"])
@pytest.mark.parametrize("as_module", [False, True])
def test_a_factory_of_the_script_being_run_is_imported_from_it(factory: str, as_module: bool, tmp_path: Path) -> None:
    (tmp_path / "my_layers.py").write_text(FACTORIES + CHECK.format(factory=factory))
    found = run(*(["-m", "my_layers"] if as_module else ["my_layers.py"]), folder=tmp_path)
    assert "# my_layers is the script that was run" in found.stdout, found.stderr
    (tmp_path / "reproduce.py").write_text(found.stdout)
    done = run("reproduce.py", folder=tmp_path)
    assert done.returncode == 1
    assert f"AssertionError: {found.stdout.splitlines()[-1].removeprefix('# ')}" in done.stderr


def test_a_script_whose_name_cannot_be_imported_is_left_to_be_filled_in(tmp_path: Path) -> None:
    (tmp_path / "my-layers.py").write_text(FACTORIES + CHECK.format(factory="Leaky"))
    assert FILL_IN in run("my-layers.py", folder=tmp_path).stdout
    code = (
        "from biases.testing.script import how_to_import\ndef make_layer(d, h): ...\nprint(how_to_import(make_layer))"
    )
    assert run("-c", code, folder=tmp_path).stdout.startswith(FILL_IN)


def test_an_object_that_builds_layers_has_no_path() -> None:
    class Builder:
        def __call__(self, dim: int, heads: int) -> nn.Module:
            return nn.Identity()

    assert how_to_import(Builder()).startswith(FILL_IN)


INFINITE = Traits(gate_range=(0, float("inf")), decay=Decay("linear", "past", "logits", (0.5, float("inf"))))


def replayed(script: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Run a script, and return the keywords that it gives to ``replay``."""
    given: dict = {}
    monkeypatch.setattr(biases.testing, "replay", lambda *arguments, **keywords: given.update(keywords))
    exec(script, {})
    return given


def test_infinite_numbers_functions_and_dtypes_are_written_as_python(factories, monkeypatch) -> None:
    options = {
        "act": nn.functional.gelu,
        "acts": [nn.GELU, (nn.functional.relu,)],
        "dtypes": {"in": torch.float32, "out": torch.float32},
        "ends": (float("-inf"), np.float64(0.5), np.int64(3), True, None, ()),
        "make_layer": factories.Leaky,
        "names": {"a b", "'"},
    }
    subject = Subject(factories.Gate, INFINITE, options=options, kind="gate")
    script = reproduce(subject, "gate-range", {"seed": 0}, how_to_import(factories.Gate))
    given = replayed(script, monkeypatch)
    assert (given["traits"], given["options"], given["kind"]) == (INFINITE, options, "gate")
    assert "fill in" not in script
    assert len(script.splitlines()) <= 15
    not_a_number = reproduce(Subject(factories.Gate, options={"end": float("nan")}), "gate-range", {}, "make_layer = 1")
    assert math.isnan(replayed(not_a_number, monkeypatch)["options"]["end"])


def test_what_cannot_be_written_as_python_is_left_to_be_filled_in(factories, monkeypatch) -> None:
    options = {"extra": torch.ones(2), "act": [lambda x: x, nn.GELU()], "b": 1}
    subject = Subject(factories.Gate, options=options, kind="gate")
    script = reproduce(subject, "gate-range", {"seed": 0}, how_to_import(factories.Gate))
    (line,) = [line for line in script.splitlines() if "fill in" in line]
    assert line.startswith(
        "from your_module import extra, act, act_  # fill in: extra: tensor([1., 1.]); act: <function"
    )
    with pytest.raises(ModuleNotFoundError, match="your_module"):
        exec(script, {})
    monkeypatch.setitem(sys.modules, "your_module", types.SimpleNamespace(extra=1, act=2, act_=3))
    assert replayed(script, monkeypatch)["options"] == {"extra": 1, "act": [2, 3], "b": 1}
    whole = kinds.operator(functools.partial(factories.shifted, extra=torch.arange(100), reach=float("inf")))
    lines = whole.how_to_build.splitlines()
    assert lines[1].startswith("from your_module import extra  # fill in: extra: tensor([ 0, 1, 2,")
    assert lines[2].endswith('make_layer = partial(make_layer, extra=extra, reach=float("inf"))')
    assert max(map(len, lines)) <= 120


def test_a_script_with_an_infinite_range_and_a_function_fails_as_the_check_did(factories, tmp_path: Path) -> None:
    (result,) = check_attention(
        factories.Gate,
        Traits(gate_range=(0, float("inf"))),
        options={"act": nn.functional.gelu},
        kind="gate",
        properties=["gate-range"],
        max_examples=5,
    )
    assert result.status == "failed"
    (tmp_path / "reproduce.py").write_text(result.reproduce)
    assert f"AssertionError: {result.message}" in run("reproduce.py", folder=tmp_path).stderr
