"""The script of a failure runs as printed, wherever the factory is defined."""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import subprocess
import sys
import types
from collections.abc import Sequence
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
    import json

    from biases.testing import Traits, check_attention

    torch.set_num_threads(1)
    for each in (Leaky, Outer.make):
        (result,) = check_attention(
            each, Traits(causal=True), properties=["future-gradient"], max_examples=5, widths=[(8, 2)]
        )
        print(json.dumps([result.reproduce, result.message]))
"""
REPLAY = """
import json, runpy, sys

for path in sys.argv[1:]:
    try:
        runpy.run_path(path)
    except AssertionError as error:
        print(json.dumps(str(error)))
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


def messages_of(scripts: Sequence[str], folder: Path) -> list[str]:
    """What each script fails with, in one process."""
    names = [f"reproduce_{n}.py" for n in range(len(scripts))]
    for name, script in zip(names, scripts, strict=True):
        (folder / name).write_text(script)
    done = run("-c", REPLAY, *names, folder=folder)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory):
    """The module of factories, and the folder that it is imported from."""
    folder = tmp_path_factory.mktemp("nested")
    (folder / "nested_factories.py").write_text(FACTORIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("nested_factories"), folder
    del sys.modules["nested_factories"]


@pytest.fixture
def factories(nested):
    return nested[0]


def leak(make_layer) -> Result:
    arguments = {"properties": ["future-gradient"], "max_examples": 5, "widths": [(8, 2)]}
    (result,) = check_attention(make_layer, Traits(causal=True), **arguments)
    assert result.status == "failed"
    return result


INSIDE = ("Outer.make", "Outer.Inner", "Outer.build")


@pytest.fixture(scope="module")
def replayed_inside(nested) -> dict[str, tuple[Result, str]]:
    """The failure of each factory inside a class, and what its script fails with in another process."""
    factories, folder = nested
    results = [leak(functools.reduce(getattr, path.split("."), factories)) for path in INSIDE]
    messages = messages_of([result.reproduce for result in results], folder)
    return dict(zip(INSIDE, zip(results, messages, strict=True), strict=True))


@pytest.mark.parametrize("path", INSIDE)
def test_a_factory_inside_a_class_is_reached_by_its_path(replayed_inside, path: str) -> None:
    result, message = replayed_inside[path]
    assert f"import nested_factories; make_layer = nested_factories.{path}\n" in result.reproduce
    assert message.startswith(result.message)


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


@pytest.fixture(scope="module", params=[["my_layers.py"], ["-m", "my_layers"]], ids=["script", "module"])
def failures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, str]]:
    """Script and message of each failure of a script that checks its own factories, and what the script fails with."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_layers.py").write_text(FACTORIES + CHECK)
    found = run(*request.param, folder=folder)
    assert found.returncode == 0, found.stderr
    scripts, messages = zip(*map(json.loads, found.stdout.splitlines()), strict=True)
    return list(zip(scripts, messages, messages_of(scripts, folder), strict=True))


@pytest.mark.parametrize("number", [0, 1], ids=["Leaky", "Outer.make"])
def test_a_factory_of_the_script_being_run_is_imported_from_it(failures, number: int) -> None:
    script, message, replayed_message = failures[number]
    assert "# my_layers is the script that was run" in script
    assert replayed_message.startswith(message)


def test_a_script_whose_name_cannot_be_imported_is_left_to_be_filled_in(tmp_path: Path) -> None:
    (tmp_path / "my-layers.py").write_text(FACTORIES + CHECK)
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


def test_a_script_with_an_infinite_range_and_a_function_fails_as_the_check_did(nested) -> None:
    factories, folder = nested
    (result,) = check_attention(
        factories.Gate,
        Traits(gate_range=(0, float("inf"))),
        options={"act": nn.functional.gelu},
        kind="gate",
        properties=["gate-range"],
        max_examples=5,
    )
    assert result.status == "failed"
    (folder / "reproduce.py").write_text(result.reproduce)
    assert f"AssertionError: {result.message}" in run("reproduce.py", folder=folder).stderr
