"""The battery's face: results, known failures, scripts that reproduce, bad arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import biases.testing
from biases.testing import (
    PROPERTIES,
    Decay,
    Property,
    Result,
    Traits,
    check_attention,
    exit_code,
    replay,
    summary,
)
from biases.testing.script import reproduce
from biases.testing.subject import Subject

ROOT = Path(biases.testing.__file__).parents[2]
LEAKY = '''
import torch
from torch import nn


class Leaky(nn.Module):
    """A causal mean that reaches one token too far."""

    def __init__(self, dim, heads, reach=1):
        super().__init__()
        self.value = nn.Linear(dim, dim)
        self.reach = reach

    def forward(self, x):
        seen = torch.ones(x.shape[1], x.shape[1]).tril(self.reach).to(x)
        return (seen / seen.sum(-1, keepdim=True)) @ self.value(x)
'''
CAUSAL = Traits(causal=True)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Mean(nn.Module):
    """Attention with equal weights over the tokens up to ``reach`` ahead."""

    def __init__(self, dim: int, heads: int, reach: int = 0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim: expected a multiple of heads={heads}, got {dim}")
        self.value = nn.Linear(dim, dim)
        self.reach = reach

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.ones(x.shape[-2], x.shape[-2]).tril(self.reach).to(x)
        return (seen / seen.sum(-1, keepdim=True)) @ self.value(x)


def one(make_layer, name: str, **arguments) -> Result:
    (result,) = check_attention(make_layer, CAUSAL, properties=[name], **arguments)
    return result


def run_script(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "reproduce.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def test_result_has_the_fields_of_the_contract() -> None:
    contract = "subject property promise status examples counterexample message reproduce seconds raised"
    assert [f.name for f in fields(Result)] == contract.split()
    result = one(Mean, "future-independence", options={"reach": 1})
    assert json.loads(json.dumps(result.as_dict())) == result.as_dict()
    assert list(result.as_dict()) == contract.split()


def test_result_rejects_an_unknown_status() -> None:
    with pytest.raises(ValueError, match="did you mean 'passed'"):
        Result("mine", "p", "P.", "pased")
    with pytest.raises(ValueError, match="at least 0"):
        Result("mine", "p", "P.", "passed", examples=-1)


def test_message_names_everything() -> None:
    result = one(Mean, "future-independence", options={"reach": 1})
    assert result.status == "failed"
    assert result.counterexample is not None
    for part in (
        "future-independence: Changing the tokens after t does not change the outputs up to t.",
        "expected an error of at most",
        "at index (0, 0, ",
        "shape (1, 1, 16), torch.float64",
        "length 2, batch 1, position 0, change small",
        "checked because: Traits.causal is True",
    ):
        assert part in result.message


def test_the_script_fails_alone_with_the_same_message(tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY)
    space: dict[str, object] = {}
    exec(LEAKY, space)
    result = one(space["Leaky"], "future-independence", how_to_build="from leaky import Leaky as make_layer")
    assert len(result.reproduce.strip().splitlines()) <= 15
    done = run_script(result.reproduce, tmp_path)
    assert done.returncode == 1
    assert f"AssertionError: {result.message}" in done.stderr


def test_the_script_carries_options_and_traits(tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY)
    traits = Traits(causal=True, decay=Decay("linear", "past", "logits"))
    (result,) = check_attention(
        Mean,
        traits,
        properties=["prefix-consistency"],
        options={"reach": 2},
        how_to_build="import leaky\nmake_layer = leaky.Leaky",
    )
    assert "options={'reach': 2}" in result.reproduce
    done = run_script(result.reproduce, tmp_path)
    assert f"AssertionError: {result.message}" in done.stderr
    mended = result.reproduce.replace("options={'reach': 2}", "options={'reach': 0}")
    assert run_script(mended, tmp_path).returncode == 0


def test_the_script_imports_the_factory_by_name_where_it_has_one() -> None:
    example = {"length": 1}
    assert "import Mean as make_layer" in one(Mean, "future-gradient", options={"reach": 1}).reproduce
    local = one(lambda dim, heads: Mean(dim, heads, 1), "future-gradient").reproduce
    assert "from your_module import your_factory as make_layer" in local
    longest = Traits(
        causal=True,
        window=4,
        equivariant_to=("shift", "flip"),
        decay=Decay("linear", "past", "logits"),
        position="none",
    )
    script = reproduce(
        Subject(Mean, longest, {"reach": 1}), "p", {f"key{i}": i for i in range(12)} | example, "a\nb\nc"
    )
    assert len(script.strip().splitlines()) <= 15


def test_replay() -> None:
    result = one(Mean, "future-gradient", options={"reach": 1})
    assert result.counterexample is not None
    with pytest.raises(AssertionError) as caught:
        replay(Mean, "future-gradient", result.counterexample, traits=CAUSAL, options={"reach": 1})
    assert str(caught.value) == result.message
    replay(Mean, "future-gradient", result.counterexample, traits=CAUSAL)
    with pytest.raises(ValueError, match="did you mean 'future-gradient'"):
        replay(Mean, "future-gradients", result.counterexample)


def test_the_same_seed_gives_the_same_results() -> None:
    def told(seed: int) -> list[tuple[object, ...]]:
        results = check_attention(Mean, CAUSAL, options={"reach": 1}, seed=seed, max_examples=5)
        return [(r.property, r.status, r.examples, r.message) for r in results]

    assert told(3) == told(3)


def test_known_failures_are_strict() -> None:
    known = {
        "future-independence": "reaches ahead",
        "finite-output": "is not one",
        "permutation-equivariance": "does not apply",
        "future-independance": "is misspelt",
    }
    results = check_attention(Mean, CAUSAL, options={"reach": 1}, known_failures=known, max_examples=5)
    by_name = {r.property: r for r in results}
    assert by_name["future-independence"].status == "xfailed"
    assert by_name["future-independence"].counterexample is not None
    assert by_name["future-independence"].message.startswith("known failure: reaches ahead\n")
    assert by_name["finite-output"].status == "xpassed"
    assert by_name["permutation-equivariance"].status == "error"
    assert by_name["future-independance"].status == "error"
    assert by_name["future-gradient"].status == "failed"
    assert exit_code(results) == 1


def test_known_failures_of_unselected_properties_are_left_alone() -> None:
    results = check_attention(
        Mean, CAUSAL, properties=["finite-output"], known_failures={"future-independence": "known"}, max_examples=3
    )
    assert [(r.property, r.status) for r in results] == [("finite-output", "passed")]


def test_exit_codes() -> None:
    def of(*statuses: str) -> int:
        return exit_code([Result("mine", "p", "P.", status) for status in statuses])

    assert of("passed", "xfailed", "not_applicable") == 0
    assert of("passed", "failed") == of("passed", "xpassed") == of("error") == 1
    assert of("not_applicable") == of() == 3
    two = [Result("mine", "p", "P.", "passed"), Result("yours", "p", "P.", "not_applicable")]
    assert exit_code(two) == 3


def test_summary_counts() -> None:
    results = [Result("mine", "p", "P.", status) for status in ("passed", "passed", "xfailed", "not_applicable")]
    counts = summary(results)
    assert counts == {
        "total": 4,
        "ran": 3,
        "passed": 2,
        "failed": 0,
        "xfailed": 1,
        "xpassed": 0,
        "not_applicable": 1,
        "error": 0,
    }


class Pixels(nn.Module):
    """A layer of images: each pixel beside the mean of its map."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"x: expected shape (B, H, W, C), got {tuple(x.shape)}")
        return self.inner(x) + x.mean((1, 2), keepdim=True)


def test_images_are_put_to_what_fits_them() -> None:
    results = {r.property: r for r in check_attention(Pixels, Traits(domain="image"), max_examples=8)}
    assert not [r.message for r in results.values() if r.status in ("failed", "error")]
    assert results["finite-output"].status == "passed"
    assert "Traits.domain is 'image'" in results["future-independence"].message


def test_an_image_layer_that_returns_a_row_is_told_so() -> None:
    def make_layer(dim: int, heads: int):
        return lambda x: x.flatten(1, 2)

    (result,) = check_attention(make_layer, Traits(domain="image"), properties=["finite-output"])
    assert result.status == "failed"
    assert "expected shape (B, H, W, C) = (1, 1, 1, 16), got (1, 1, 16)" in result.message
    assert "height 1, width 1" in result.message


def test_traits_of_the_factory_are_the_default() -> None:
    def make_layer(dim: int, heads: int) -> nn.Module:
        return Mean(dim, heads, 1)

    (undeclared,) = check_attention(make_layer, properties=["future-independence"], max_examples=3)
    assert undeclared.status == "not_applicable"
    assert "Traits.causal" in undeclared.message
    make_layer.traits = CAUSAL
    (declared,) = check_attention(make_layer, properties=["future-independence"], max_examples=3)
    assert (declared.subject, declared.status) == ("make_layer", "failed")


def test_a_factory_that_raises_is_an_error_and_not_a_failure() -> None:
    def make_layer(dim: int, heads: int) -> nn.Module:
        raise RuntimeError("no such kernel")

    results = check_attention(make_layer, CAUSAL, max_examples=3)
    ran = [r for r in results if r.status != "not_applicable" and r.property != "invalid-arguments"]
    assert {r.status for r in ran} == {"error"}
    assert "make_layer(16, 2) raised RuntimeError: no such kernel" in ran[0].message
    assert exit_code(results) == 1


def test_a_layer_that_cannot_be_called_is_an_error() -> None:
    (result,) = check_attention(lambda dim, heads: 3, properties=["finite-output"])
    assert result.status == "error"
    assert "expected a callable" in result.message


def test_an_interrupt_is_not_swallowed() -> None:
    def make_layer(dim: int, heads: int) -> nn.Module:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_attention(make_layer, CAUSAL)


def test_after_the_deadline_the_search_stops_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    # What stops a call that does not end is not to be met by a slow machine.
    monkeypatch.setattr("biases.testing.check._GRACE", 300.0)
    kept = one(Mean, "finite-output", deadline=1e-9, max_examples=1000)
    assert kept.status == "passed"
    assert kept.examples == 1
    broken = one(Mean, "future-independence", options={"reach": 1}, deadline=1e-9)
    assert broken.status == "failed"
    assert broken.counterexample is not None
    with pytest.raises(AssertionError) as caught:
        replay(Mean, broken.property, broken.counterexample, traits=CAUSAL, options={"reach": 1})
    assert str(caught.value) == broken.message


def test_progress_hears_of_every_property() -> None:
    heard: list[tuple[int, int, str]] = []
    results = check_attention(
        Mean,
        CAUSAL,
        max_examples=1,
        known_failures={"gone": "stale"},
        progress=lambda done, total, result: heard.append((done, total, result.property)),
    )
    total = len(PROPERTIES) + 1
    assert heard == [(i, total, r.property) for i, r in enumerate(results, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"properties": ["finite-outputs"]}, "did you mean 'finite-output'"),
        ({"max_examples": 0}, "max_examples: expected an integer of at least 1, got 0"),
        ({"deadline": 0}, "deadline: expected a positive number of seconds, got 0"),
        ({"traits": {"causal": True}}, "traits: expected Traits, got dict"),
        ({"make_layer": 3}, "make_layer: expected a callable"),
        ({"widths": []}, "widths: expected at least one pair"),
    ],
)
def test_bad_arguments(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_attention(**{"make_layer": Mean, "traits": CAUSAL, **arguments})


def test_properties_state_their_promise() -> None:
    for name, prop in PROPERTIES.items():
        assert isinstance(prop, Property)
        assert name == prop.name == name.lower().replace(" ", "-")
        assert prop.promise.endswith(".")
        assert prop.applies(CAUSAL, prop.kinds[0]) is None or prop.trait is not None


def test_the_battery_needs_neither_the_zoo_nor_hypothesis_to_be_imported() -> None:
    code = (
        "import sys, biases.testing as t, torch\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('hypothesis', 'scipy', 'rich', 'plotly', 'pytest')])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
    folder = Path(biases.testing.__file__).parent
    for path in folder.rglob("*.py"):
        assert not any(f"biases.{room}" in path.read_text() for room in ("zoo", "layers", "models", "registry"))
