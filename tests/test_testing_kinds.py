"""Subjects of other kinds than layers: made of plain functions, checked, reproduced, refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from biases.cli import main
from biases.testing import PROPERTIES, Traits, check_attention, kinds
from biases.testing.views import VIEWED

# Properties that cost tens of milliseconds an example are the marathon's business, not this file's.
FEW = 6


class Rotate:
    """Rotary encoding in plain tensors."""

    def __init__(self, head_dim: int) -> None:
        self.rate = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)

    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        angle = positions[:, None] * self.rate
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Running:
    """The mean of the tokens so far, as a prefill and a step."""

    def __init__(self, dim: int, heads: int) -> None:
        pass

    def prefill(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, int]]:
        count = torch.arange(1, x.shape[1] + 1).to(x)[:, None]
        return x.cumsum(1) / count, (x.sum(1, keepdim=True), x.shape[1])

    def step(self, x: torch.Tensor, state: tuple[torch.Tensor, int]) -> tuple[torch.Tensor, tuple[torch.Tensor, int]]:
        total, count = state[0] + x, state[1] + 1
        return total / count, (total, count)


def running_pair(dim: int, heads: int):
    made = Running(dim, heads)
    return made.prefill, made.step


def token_gate(dim: int, heads: int):
    return lambda x: torch.sigmoid(x.square().mean(-1))


def alibi_bias(heads: int, queries: int, keys: int) -> torch.Tensor:
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
    distance = torch.arange(queries)[:, None] - torch.arange(keys)
    return (-slopes[:, None, None] * distance).masked_fill(distance < 0, -math.inf)


def alibi_slopes(heads: int) -> list[float]:
    def powers(count: int) -> list[float]:
        return [2.0 ** (-8 * (h + 1) / count) for h in range(count)]

    nearest = 2 ** math.floor(math.log2(heads))
    return powers(nearest) + powers(2 * nearest)[::2][: heads - nearest]


def causal_mask(queries: int, keys: int) -> torch.Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril()


SUBJECTS = {
    "operator": kinds.operator(
        partial(scaled_dot_product_attention, is_causal=True),
        Traits(causal=True, alignment="upper-left", normalisation="row"),
    ),
    "encoding": kinds.encoding(Rotate, Traits(position="relative")),
    "decoder": kinds.decoder(running_pair, Traits(causal=True)),
    "gate": kinds.gate(token_gate, Traits(gate_range=(0.0, 1.0), gate_sees="token")),
    "bias": kinds.bias(alibi_bias, Traits(causal=True, alignment="upper-left")),
    "slopes": kinds.slopes(alibi_slopes),
    "mask": kinds.mask(causal_mask, Traits(causal=True, alignment="upper-left")),
}


@pytest.mark.parametrize("kind", SUBJECTS)
def test_a_sound_subject_of_each_kind_passes(kind: str) -> None:
    results = check_attention(SUBJECTS[kind], max_examples=FEW)
    assert not [result.message for result in results if result.status in ("failed", "error")]
    ran = [result for result in results if result.status == "passed"]
    assert ran
    assert all(kind in PROPERTIES[result.property].kinds for result in ran)


def test_every_kind_has_a_subject_here() -> None:
    assert set(SUBJECTS) | {"layer"} == set(kinds.KINDS)
    assert set(VIEWED) < set(kinds.KINDS)


def test_the_script_of_a_wrapped_function_reproduces(tmp_path: Path) -> None:
    wrong = kinds.operator(partial(scaled_dot_product_attention, is_causal=False), Traits(causal=True))
    (result,) = check_attention(wrong, properties=["future-independence"])
    assert result.status == "failed"
    assert "make_layer = kinds.operator(make_layer)" in result.reproduce
    assert len(result.reproduce.splitlines()) <= 15
    (tmp_path / "reproduce.py").write_text(result.reproduce)
    done = subprocess.run([sys.executable, "reproduce.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"AssertionError: {result.message}" in done.stderr


def test_a_plain_function_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    target = "torch.nn.functional:scaled_dot_product_attention"
    arguments = ["check", target, "--as", "operator", "--property", "finite-output", "--json"]
    assert main(arguments) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["subject"], result["status"]) == (target, "passed")
    assert main(["check", target, "--as", "operator", "--property", "future-independence"]) == 3
    assert main([*arguments[:-1], "--trait", "causal=true", "--property", "future-independence"]) == 1
    assert "kinds.operator(make_layer)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["standard", "--as", "operator"], "--as: expected targets of the form module:factory"),
        (["torch.nn:Linear", "--as", "operater"], "did you mean 'operator'"),
        (["standard", "--device", "abacus"], "device: expected a device that torch can use here"),
        (["standard", "--dtype", "float31"], "did you mean 'float32'"),
        (["standard", "--deadline", "0"], "deadline: expected a positive number of seconds"),
    ],
)
def test_bad_arguments_of_the_command(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_bad_arguments_of_the_function() -> None:
    with pytest.raises(ValueError, match="kind: expected one of"):
        check_attention(Rotate, kind="wheel")
    with pytest.raises(ValueError, match="expected a factory, got int"):
        check_attention(Rotate, forms={"other": 3})
    with pytest.raises(ValueError, match=r"expected a floating dtype, got torch\.int64"):
        check_attention(Rotate, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"kinds\.mask: expected a callable, got int"):
        kinds.mask(3)


def test_the_dtype_asked_for_is_the_one_that_is_checked() -> None:
    seen = set()

    def make_layer(dim: int, heads: int):
        def layer(x: torch.Tensor) -> torch.Tensor:
            seen.add(x.dtype)
            return x

        return layer

    (result,) = check_attention(make_layer, properties=["batch-independence"], dtype="bfloat16", max_examples=FEW)
    assert result.status == "passed"
    assert seen == {torch.bfloat16}


def test_a_decoder_that_returns_no_pair_is_told_so() -> None:
    subject = kinds.decoder(lambda dim, heads: lambda x, state: x)
    (result,) = check_attention(subject, properties=["finite-output"])
    assert result.status == "failed"
    assert "the decoder returned Tensor, expected a pair (out, state)" in result.message


class TwoStep(torch.nn.Module):
    """A prefill and a step of one module, with parameters."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = torch.nn.Linear(dim, dim)

    def prefill(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.out(x.cumsum(1)), x.sum(1, keepdim=True)

    def step(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.out(state + x), state + x


def methods_of_a_module(dim: int, heads: int):
    made = TwoStep(dim)
    return made.prefill, made.step


def closures_over_a_module(dim: int, heads: int):
    made = TwoStep(dim)
    return lambda x: made.prefill(x), lambda x, state: made.step(x, state)


@pytest.mark.parametrize("make", [methods_of_a_module, closures_over_a_module])
def test_a_pair_with_parameters_is_sound(make) -> None:
    results = {r.property: r for r in check_attention(kinds.decoder(make, Traits(causal=True)), max_examples=FEW)}
    assert not [r.message for r in results.values() if r.status in ("failed", "error") and "float64" not in r.message]
    assert results["decode-agrees-with-prefill"].status == "passed"
    found = "passed" if make is methods_of_a_module else "not_applicable"
    assert results["deepcopy-agreement"].status == found


@pytest.mark.parametrize("where", ["call", "build"])
def test_leaving_the_program_is_no_way_to_pass(where: str) -> None:
    def make_layer(dim: int, heads: int):
        if where == "build":
            sys.exit(0)

        def layer(x: torch.Tensor) -> torch.Tensor:
            sys.exit(0)

        return layer

    results = check_attention(make_layer, properties=["finite-output", "deterministic"], max_examples=2)
    assert [r.status for r in results] == ["failed" if where == "call" else "error"] * 2
    assert "SystemExit: 0" in results[0].message


def test_a_module_that_leaves_the_program_is_a_bad_target(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["check", "leaves:make"]) == 2
    assert "SystemExit" in capsys.readouterr().err


def test_the_wrong_kind_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    target = "torch.nn.functional:scaled_dot_product_attention"
    assert main(["check", target, "--property", "finite-output"]) == 1
    assert "--as KIND" in capsys.readouterr().out


def test_why_nothing_was_checked_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "standard", "--property", "slopes-range"]) == 3
    assert "standard: nothing was checked" in (out := capsys.readouterr().out)
    assert "it is a promise of slopes" in out
    assert main(["check", "torch.nn:mask:x", "--property", "slopes-range"]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mask=5", "Traits mask: expected one of 'boolean', 'additive'"),
        ("gate_range=1", "Traits gate_range: expected None or two numbers"),
        ("gate_range=1,0", "low < high"),
        ("window=true", "Traits window: expected None or a number of keys"),
        ("decay=linear,past", "kind,monotone_in,placement,rates"),
        ("decay=linear,past,logits,alibbi", "did you mean 'alibi'"),
    ],
)
def test_bad_traits_are_refused(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "torch.nn:Identity", "--trait", text]) == 2
    assert message in capsys.readouterr().err


def test_slopes_are_held_to_the_rule_that_the_command_names(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "slopes_of_mine.py").write_text(
        "def slopes(heads):\n    return [2.0 ** -(h + 1) for h in range(heads)]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["check", "slopes_of_mine:slopes", "--as", "slopes", "--trait", "decay=linear,past,logits,alibi"]
    assert main([*arguments, "--property", "slopes-reference"]) == 1


def test_widths_and_options_from_the_command_line(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "sized.py").write_text(
        "def make(dim, heads, gain=0):\n"
        "    assert (dim, heads, gain) == (64, 4, 2.5), (dim, heads, gain)\n"
        "    return lambda x: gain * x\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["check", "sized:make", "--property", "finite-output", "--widths", "64:4"]
    assert main([*arguments, "--option", "gain=2.5"]) == 0
    assert main(arguments) == 1
    assert main(["check", "sized:make", "--widths", "64"]) == 2
    assert "--widths: expected dim:heads" in capsys.readouterr().err
