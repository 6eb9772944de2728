"""Layers whose own code raises, or takes one dtype only: they are reported, and everything else still runs."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from torch import Tensor, nn

from biases.testing import PROPERTIES, Property, Result, Traits, check_attention, exit_code, replay
from biases.testing.properties import interface
from biases.testing.subject import BuildError

CAUSAL = Traits(causal=True)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Mean(nn.Module):
    """Causal attention with equal weights; the layers below change one step of it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim: expected a multiple of heads={heads}, got {dim}")
        self.value = self.projection(dim)

    def projection(self, dim: int) -> nn.Module:
        return nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.value(x).cumsum(-2) / torch.arange(1, x.shape[-2] + 1).to(x)[:, None])

    def after(self, y: Tensor) -> Tensor:
        return y


class _RaisingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        raise TypeError("no gradient kernel")


class RaisingBackward(Mean):
    def after(self, y: Tensor) -> Tensor:
        return _RaisingBackward.apply(y)


class Lazy(Mean):
    def projection(self, dim: int) -> nn.Module:
        return nn.LazyLinear(dim)


class LazyAndRaising(Lazy):
    def after(self, y: Tensor) -> Tensor:
        raise OSError("no such kernel")


class LazyAndUnused(Mean):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.spare = nn.LazyLinear(dim)


class NeverMoves(Mean):
    def to(self, *args, **kwargs):
        raise TypeError("this layer does not move")


class Float32Cast(Mean):
    """Refuses to be cast to another dtype."""

    def to(self, dtype):
        if dtype != torch.float32:
            raise TypeError(f"no kernel for {dtype}")
        return super().to(dtype)


class Float32Only(Mean):
    """Refuses inputs of another dtype."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError(f"expected float32, got {x.dtype}")
        return super().forward(x)


class WrongInBFloat16(Mean):
    """Does not take an odd number of tokens in bfloat16, and is wrong for an even one."""

    def after(self, y: Tensor) -> Tensor:
        if y.dtype != torch.bfloat16:
            return y
        if y.shape[1] % 2:
            raise RuntimeError("an even length is needed")
        return 1.5 * y


class Unsaveable(Mean):
    def state_dict(self, *args, **kwargs):
        raise TypeError("nothing to save")


class Unloadable(Mean):
    def load_state_dict(self, *args, **kwargs):
        raise KeyError("value")


class Locked(Mean):
    """Cannot be copied."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.lock = threading.Lock()


class Immovable(Mean):
    """Does not hand out its parameters."""

    def parameters(self, recurse: bool = True):
        raise PermissionError("sealed")


class RaisingEval(Mean):
    def train(self, mode: bool = True):
        raise OSError("no mode")


class SilentEval(Mean):
    def train(self, mode: bool = True):
        super().train(mode)


class Detached(Mean):
    def after(self, y: Tensor) -> Tensor:
        return y.detach()


class Inference(Mean):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().forward(x)


class DetachedInput(Mean):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class DetachedWithoutParameters(Detached):
    def projection(self, dim: int) -> nn.Module:
        return nn.Identity()


class DetachedAndFrozen(Detached):
    def projection(self, dim: int) -> nn.Module:
        return super().projection(dim).requires_grad_(False)


class Integers(Mean):
    def after(self, y: Tensor) -> Tensor:
        return y.round().long()


def results_of(make_layer, **arguments) -> dict[str, Result]:
    results = check_attention(make_layer, CAUSAL, max_examples=6, **arguments)
    assert [r.property for r in results] == [p for p in PROPERTIES if p in arguments.get("properties", PROPERTIES)]
    return {r.property: r for r in results}


def ending_in(results: dict[str, Result], *statuses: str) -> set[str]:
    return {name for name, result in results.items() if result.status in statuses}


def one(make_layer, name: str, **arguments) -> Result:
    return results_of(make_layer, properties=[name], **arguments)[name]


def test_a_backward_that_raises_fails_the_promises_about_gradients_only() -> None:
    results = results_of(RaisingBackward)
    about_gradients = {"finite-gradient", "future-gradient", "gradient-is-derivative", "noncontiguous-gradient"}
    about_gradients |= {"long-input-finite"}
    assert ending_in(results, "failed", "error") == about_gradients
    for name in about_gradients:
        assert results[name].status == "failed"
        assert "the backward pass raised TypeError: no gradient kernel" in results[name].message
        assert results[name].reproduce


def test_lazy_layers_are_initialised() -> None:
    assert not ending_in(results_of(Lazy), "failed", "error")


@pytest.mark.parametrize(
    ("make_layer", "message"),
    [
        (LazyAndRaising, r"an input of shape \(1, 2, 16\) that initialises .* raised OSError: no such kernel"),
        (LazyAndUnused, r"still lazy: spare\.weight, spare\.bias"),
        (NeverMoves, r"the layer's to\(torch\.float32\) raised TypeError: this layer does not move"),
        (RaisingEval, r"the layer's eval\(\) raised OSError: no mode"),
    ],
)
def test_a_layer_that_cannot_be_made_ready_is_an_error(make_layer, message: str) -> None:
    results = results_of(make_layer)
    assert not ending_in(results, "failed")
    assert len(ending_in(results, "error")) > 10
    result = results["finite-output"]
    assert result.status == "error"
    with pytest.raises(BuildError, match=message):
        replay(make_layer, "finite-output", result.counterexample or {}, traits=CAUSAL)
    assert "replay(" in result.reproduce


def test_parameters_that_cannot_be_moved_are_an_error() -> None:
    result = one(Immovable, "finite-output")
    assert result.status == "error"
    assert "moving the layer's parameters in place raised PermissionError: sealed" in result.message
    assert (result.counterexample or {})["parameters"] == "moved"


@pytest.mark.parametrize("make_layer", [Locked, SilentEval])
def test_what_a_check_can_do_without_is_no_failure(make_layer) -> None:
    assert not ending_in(results_of(make_layer), "failed", "error")


@pytest.mark.parametrize(
    ("make_layer", "message"),
    [(Unsaveable, "raised TypeError: nothing to save"), (Unloadable, "load_state_dict raised KeyError: 'value'")],
)
def test_a_state_that_cannot_be_carried_over_is_a_failure(make_layer, message: str) -> None:
    results = results_of(make_layer)
    assert ending_in(results, "failed", "error") == {"state-dict-round-trip"}
    assert results["state-dict-round-trip"].status == "failed"
    assert message in results["state-dict-round-trip"].message


def test_an_output_that_is_not_floating_is_a_failure() -> None:
    results = results_of(Integers)
    assert not ending_in(results, "error")
    assert "output: expected dtype torch.float32, got torch.int64" in results["finite-output"].message


def test_a_check_that_raises_is_an_error_with_its_example(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(case) -> None:
        if case.example["length"] > 2:
            raise KeyError("lost")

    planted = Property("finite-output", "A finite input gives a finite output.", check)
    monkeypatch.setitem(PROPERTIES, "finite-output", planted)
    results = results_of(Mean)
    assert ending_in(results, "failed", "error") == {"finite-output"}
    result = results["finite-output"]
    assert result.status == "error"
    assert "finite-output: the check raised KeyError: 'lost'" in result.message
    assert (result.counterexample or {})["length"] == 3
    with pytest.raises(KeyError, match="lost"):
        replay(Mean, "finite-output", result.counterexample or {}, traits=CAUSAL)


def test_a_search_that_raises_leaves_the_other_properties_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(traits: Traits) -> str | None:
        raise ZeroDivisionError("in the reason")

    promise = "A finite input gives a finite output."
    planted = Property("finite-output", promise, interface.finite_output, reason=reason)
    monkeypatch.setitem(PROPERTIES, "finite-output", planted)
    results = results_of(Mean)
    assert ending_in(results, "failed", "error") == {"finite-output"}
    assert results["finite-output"].message == "finite-output: the check raised ZeroDivisionError: in the reason"
    assert exit_code(results.values()) == 1


@pytest.mark.parametrize("make_layer", [Detached, Inference])
def test_trainable_parameters_without_gradients_are_a_failure(make_layer) -> None:
    result = one(make_layer, "finite-gradient")
    assert result.status == "failed"
    expected = "expected gradients for the input and for 2 trainable parameters, 'value.weight' the first of them"
    assert f"output: {expected}, got an output without a graph" in result.message


def test_an_input_without_a_gradient_is_a_failure() -> None:
    result = one(DetachedInput, "finite-gradient")
    assert result.status == "failed"
    assert "gradient for the input: expected one" in result.message


@pytest.mark.parametrize("make_layer", [DetachedWithoutParameters, DetachedAndFrozen])
def test_without_trainable_parameters_there_need_be_no_gradients(make_layer) -> None:
    result = one(make_layer, "finite-gradient")
    assert (result.status, result.message) == ("not_applicable", "the output carries no gradient")
    assert result.examples == 0


@pytest.mark.parametrize("make_layer", [Float32Only, Float32Cast])
def test_a_dtype_that_a_layer_refuses_is_no_failure(make_layer) -> None:
    results = results_of(make_layer)
    assert not ending_in(results, "failed", "error")
    assert ending_in(results, "not_applicable") >= {"bfloat16-budget", "float64-agreement"}
    message = results["bfloat16-budget"].message
    assert "the layer runs in float32 and does not take bfloat16" in message
    assert "TypeError" in message


def test_a_layer_that_raises_in_every_dtype_refuses_none() -> None:
    class Broken(Mean):
        def after(self, y: Tensor) -> Tensor:
            raise RuntimeError("no such kernel")

    for name in ("bfloat16-budget", "shape-dtype-device"):
        result = one(Broken, name)
        assert result.status == "failed"
        assert "RuntimeError: no such kernel" in result.message


def test_a_refusal_on_some_inputs_does_not_hide_wrong_numbers_on_others() -> None:
    (result,) = check_attention(WrongInBFloat16, CAUSAL, properties=["bfloat16-budget"])
    assert result.status == "failed"
    assert "bfloat16 output: expected an error of at most" in result.message
    assert (result.counterexample or {})["length"] == 2


def test_a_factory_that_needs_other_widths_is_told_how_to_say_so() -> None:
    def make_layer(dim: int, heads: int) -> nn.Module:
        if dim % 64:
            raise ValueError(f"dim: expected a multiple of 64, got {dim}")
        return Mean(dim, heads)

    result = one(make_layer, "finite-output")
    assert result.status == "error"
    assert "expected a multiple of 64, got 16; check a layer that needs other widths with widths=[(dim, heads)]" in (
        result.message
    )
    assert not ending_in(results_of(make_layer, widths=[(64, 4)]), "failed", "error")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"known_failures": ["finite-output"]}, "known_failures: expected a mapping, .* got list"),
        ({"known_failures": {"finite-output": None}}, r"known_failures\['finite-output'\]: expected a reason"),
        ({"options": ["reach"]}, "options: expected a mapping, keyword -> value, got list"),
        ({"widths": (64, 4)}, r"widths: expected at least one pair \(dim, heads\), .* got \(64, 4\)"),
        ({"widths": [(64, 0)]}, "widths heads: expected an integer of at least 1, got 0"),
    ],
)
def test_arguments_of_another_kind(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_attention(Mean, CAUSAL, **arguments)


def test_a_missing_hypothesis_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ModuleNotFoundError, match=r"hypothesis .*pip install 'attention-biases\[check\]'") as caught:
        check_attention(Mean, CAUSAL)
    assert caught.value.name == "hypothesis"
    example = {"length": 2, "batch": 1, "dim": 8, "heads": 2, "regime": "normal", "parameters": "initial", "seed": 0}
    replay(Mean, "finite-output", example)
