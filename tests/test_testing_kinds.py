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
