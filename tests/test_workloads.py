"""Workloads: what the zoo gives to run, that it is checked, and that wrong results are found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from biases import ALiBi, KeyGate, attend, zoo
from biases._calls import problems, recorded, replaced
from biases.attention import BACKENDS
from biases.backends.fused import formulate
from biases.bench import module_checks, modules, operators
from biases.bench.operators import Operator
from biases.bench.workloads import LEVELS, Setting, from_calls, names, prepare, record
from biases.layers.self_attention import SelfAttention

SMALL = {"batch": 2, "heads": 2, "length": 36, "head_dim": 8}
BOTH = ("forward", "forward+backward")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_names_come_from_the_zoo():
    assert names("operator") == names("layer") == zoo.names("layer")
    for level in ("model", "training"):
        assert set(zoo.names("model")) < set(names(level))
        assert "char-gpt[attention=alibi]" in names(level)
        assert not any("swin]" in name for name in names(level))
    with pytest.raises(ValueError, match="did you mean 'layer'"):
        names("layers")


@pytest.mark.parametrize("name", zoo.names("layer"))
@pytest.mark.parametrize("direction", BOTH)
def test_every_layer_is_right_as_operator_and_whole(name, direction):
    for level in ("operator", "layer"):
        workload = prepare(level, name, Setting(**SMALL, direction=direction))
        workload.check()
        results, floor = workload.run(), workload.floor()
        assert all(torch.isfinite(x).all() for x in results)
        assert results[0].shape == floor[0].shape
        assert workload.tokens == 72
        assert workload.flops() > 0
        assert len(workload.formulations()) >= 1
        assert workload.causal == zoo.get(name).traits.causal


@pytest.mark.parametrize("name", ["char-gpt", "char-gpt[attention=ega-token]", "rmt-digits", "swin-digits"])
@pytest.mark.parametrize("level", ["model", "training"])
def test_models_and_their_training(level, name):
    workload = prepare(level, name, Setting(batch=2, heads=2, length=64, head_dim=8, direction="forward+backward"))
    workload.check()
    first, again = workload.run(), workload.run()
    assert first[0].isfinite().all()
    assert workload.floor()[0].isfinite().all()
    if level == "training":
        # The learning rate is 0, so that every step is the same step; the loss is that of guessing at first.
        torch.testing.assert_close(first[0], again[0])
        assert len(first) == 1
    else:
        assert len(first) > 1


def test_a_training_step_is_forward_and_backward():
    with pytest.raises(ValueError, match=r"expected 'forward\+backward', got 'forward'"):
        prepare("training", "char-gpt", Setting(**SMALL))


@pytest.mark.parametrize("name", ["ega", "alibi", "gated-swin-swat", "manhattan-decomposed", "retention"])
def test_an_operator_is_the_calls_of_its_layer(name):
    """Their outputs are what the layer gets: run one after the other on the recorded tensors, they give it again."""
    setting = Setting(**SMALL)
    layer, x = modules.build_layer(name, setting, "auto")
    with recorded() as calls, torch.no_grad():
        expected = layer(x)
    outputs = iter(prepare("operator", name, setting).run())

    def next_output(q, k, v, **options):
        return next(outputs)

    with replaced(next_output), torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    assert next(outputs, None) is None
    assert len(calls) == (2 if name in ("gated-swin-swat", "manhattan-decomposed") else 1)


def test_what_is_learned_gets_gradients_and_what_is_shared_stays_one():
    logits = torch.randn(2, 2, 12, requires_grad=True)
    gate = KeyGate(torch.nn.functional.logsigmoid(logits))
    slopes = torch.tensor([0.5, 0.25], requires_grad=True)
    q = torch.randn(2, 2, 12, 8)
    call = ((q, q, q), {"key_gate": gate, "bias": (ALiBi(slopes), ALiBi(slopes, symmetric=True))})
    operator = Operator.of(call, seed=0)
    assert operator.q is operator.k
    assert [tuple(each.shape) for each in operator.learned] == [(2,), (2, 2, 12)]
    assert all(each.is_leaf and each.requires_grad for each in operator.leaves)
    out = operator.run()
    assert [tuple(each.shape) for each in out[-2:]] == [(2,), (2, 2, 12)]
    operators.check(operator, call, "shared", seed=0)


def test_inputs_keep_their_strides():
    """A broadcast gate or a transposed projection is part of what a formulation sees."""
    layer, x = modules.build_layer("ega", Setting(**SMALL), "auto")
    with recorded() as calls:
        layer(x)
    ((q, k, _), _), operator = calls[0], Operator.of(calls[0], seed=None)
    assert (operator.q.stride(), operator.k.stride()) == (q.stride(), k.stride())
    assert not operator.q.is_contiguous()


def test_forward_asks_for_no_gradients():
    seen = []

    def note(q, k, v, **options):
        seen.append(torch.is_grad_enabled() or q.requires_grad or options["key_gate"].log.requires_grad)
        return v

    workload = prepare("operator", "ega", Setting(**SMALL))
    with replaced(note):
        workload.run()
    assert seen == [False]


def test_the_same_numbers_every_time():
    first, again = (prepare("operator", "ega", Setting(**SMALL, direction=BOTH[1])).run() for _ in range(2))
    other = prepare("operator", "ega", Setting(**SMALL, direction=BOTH[1], seed=1)).run()
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(first[0], other[0])


def test_preparing_leaves_the_random_state():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    prepare("layer", "standard", Setting(**SMALL))
    assert torch.equal(state, torch.get_rng_state())


def _planted(fault):
    """``attend``, its output changed by ``fault`` (output -> output)."""
    return lambda q, k, v, **options: fault(attend(q, k, v, **options))


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.001


FAULTS = {
    "all queries": lambda out: out * 1.001,
    "the last query": lambda out: torch.cat([out[:, :, :-1], out[:, :, -1:] * 1.01], 2),
    "one number that is not finite": lambda out: out.clone().index_fill_(2, torch.tensor([0]), torch.nan),
}


@pytest.mark.parametrize("largest", [operators.LARGEST_DENSE, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_outputs_are_found(monkeypatch, largest, fault):
    """Also where only a sample of queries is compared."""
    monkeypatch.setattr(operators, "LARGEST_DENSE", largest)
    setting = Setting(batch=1, heads=2, length=200, head_dim=8)
    (call,) = record("alibi", setting)
    operator = Operator.of(call, seed=None, function=_planted(FAULTS[fault]))
    assert (operators.rows_checked(operator) is None) == (largest > 1)
    with pytest.raises(AssertionError, match="planted: output"):
        operators.check(operator, call, "planted", seed=None)


@pytest.mark.parametrize("largest", [operators.LARGEST_DENSE, 1])
def test_wrong_gradients_are_found(monkeypatch, largest):
    monkeypatch.setattr(operators, "LARGEST_DENSE", largest)
    (call,) = record("ega", Setting(batch=1, heads=2, length=200, head_dim=8))
    operator = Operator.of(call, seed=1, function=_planted(_WrongGradient.apply))
    with pytest.raises(AssertionError, match="planted: gradient of"):
        operators.check(operator, call, "planted", seed=1)


@pytest.mark.parametrize("name", ["alibi", "ega", "manhattan", "swat", "retention", "gated-swin-swat"])
@pytest.mark.parametrize("direction", BOTH)
def test_a_sample_of_queries_agrees_with_its_specification(monkeypatch, name, direction):
    monkeypatch.setattr(operators, "LARGEST_DENSE", 1 << 16)
    workload = prepare("operator", name, Setting(batch=1, heads=2, length=400, head_dim=16, direction=direction))
    workload.check()
    assert workload.checked.startswith("80 of 400 queries") or name == "gated-swin-swat"


def test_a_sample_has_the_first_and_the_last_query(monkeypatch):
    monkeypatch.setattr(operators, "LARGEST_DENSE", 1)
    (call,) = record("standard", Setting(batch=1, heads=2, length=200, head_dim=8))
    rows = operators.rows_checked(Operator.of(call, seed=None))
    assert rows is not None
    assert rows[0] == 0
    assert rows[-1] == 199
    assert operators.FEWEST_ROWS <= len(rows) < 200


def test_wrong_layers_are_found(monkeypatch):
    """A layer of other weights than those it is compared with."""
    setting = Setting(**SMALL)
    ours, x = modules.build_layer("alibi", setting, "auto")
    other, _ = modules.build_layer("alibi", replace(setting, seed=1), "auto")
    module_checks.check_same_function(ours, ours, x, setting, "same")
    with pytest.raises(AssertionError, match="other: output"):
        module_checks.check_same_function(other, ours, x, setting, "other")


def _in_training(fault):
    """A change of ``attend`` that only gradients or modes of training see."""

    def planted(q, k, v, **options):
        return fault(attend(q, k, v, **options)) if torch.is_grad_enabled() else attend(q, k, v, **options)

    return planted


@pytest.mark.parametrize("level", ["model", "training"])
@pytest.mark.parametrize("fault", [lambda out: out * torch.nan, lambda out: out * 1.1, _WrongGradient.apply])
def test_wrong_steps_are_found(monkeypatch, level, fault):
    monkeypatch.setattr("biases.layers.self_attention.attend", _specified_aside(_in_training(fault)))
    setting = Setting(batch=2, heads=2, length=16, head_dim=8, direction=BOTH[1])
    with pytest.raises(AssertionError, match="char-gpt: "):
        prepare(level, "char-gpt", setting).check()


def _specified_aside(planted):
    def chosen(q, k, v, *, backend, **options):
        return (planted if backend == "auto" else attend)(q, k, v, backend=backend, **options)

    return chosen


def test_a_model_that_is_wrong_in_training_mode_alone_is_found(monkeypatch):
    """The mode of training is that in which it is timed."""

    def planted(q, k, v, **options):
        return attend(q, k, v, **options) * (1.1 if modes[-1] else 1.0)

    modes, forward = [False], SelfAttention.forward

    def seen(self, *given, **options):
        modes.append(self.training and self.backend == "auto")
        return forward(self, *given, **options)

    monkeypatch.setattr(SelfAttention, "forward", seen)
    monkeypatch.setattr("biases.layers.self_attention.attend", planted)
    setting = Setting(batch=2, heads=2, length=16, head_dim=8)
    prepare("model", "char-gpt", setting).check()
    with pytest.raises(AssertionError, match="char-gpt: output"):
        prepare("model", "char-gpt", replace(setting, direction=BOTH[1])).check()


@pytest.mark.parametrize("result", [torch.tensor(torch.nan), torch.tensor(1.0)])
def test_the_step_itself_is_compared(monkeypatch, result):
    """Not a pass through the same model beside it."""
    monkeypatch.setattr("biases.bench.module_checks.training_step", lambda module, x, loss: lambda: (result,))
    setting = Setting(batch=2, heads=2, length=16, head_dim=8, direction=BOTH[1])
    with pytest.raises(AssertionError, match="char-gpt: output"):
        prepare("training", "char-gpt", setting).check()


def test_dropout_that_is_asked_for_is_run_but_not_compared():
    setting = Setting(batch=2, heads=2, length=16, head_dim=8, direction=BOTH[1])
    workload = prepare("training", "char-gpt[dropout=0.1]", setting)
    assert workload.checked == "loss and gradients in training mode without dropout"
    workload.check()
    assert not torch.equal(workload.run()[0], workload.run()[0])


def test_results_that_are_not_finite_at_full_size_are_found(monkeypatch):
    """Where the comparison is at a smaller size."""
    setting = Setting(batch=1, heads=2, length=modules.CHECKED_TOKENS["layer"] + 1, head_dim=8)

    def planted(q, k, v, **options):
        return attend(q, k, v, **options) * (torch.nan if q.shape[2] == setting.length else 1.0)

    monkeypatch.setattr("biases.layers.self_attention.attend", planted)
    with pytest.raises(AssertionError, match="alibi: result 0 of the run at 513 tokens is not finite"):
        prepare("layer", "alibi", setting).check()


def test_long_inputs_of_layers_are_cut_for_the_check():
    long = Setting(batch=1, heads=2, length=64**2, head_dim=8)
    assert modules.checked_setting("layer", "alibi", long).length == modules.CHECKED_TOKENS["layer"]
    assert modules.checked_setting("layer", "swin", long).length == 16**2
    assert modules.checked_setting("layer", "swin", replace(long, length=49)).length == 49
    checked = prepare("layer", "alibi", long).checked
    assert checked == "outputs, of 1 x 512 tokens; of all only that results are finite"


@pytest.mark.parametrize("backend", ["fused", "dense", "reference"])
def test_a_backend_can_be_named(backend):
    for level, name in (("operator", "alibi"), ("layer", "alibi"), ("model", "char-gpt[attention=alibi]")):
        workload = prepare(level, name, Setting(**SMALL), backend=backend)
        workload.check()
        assert set(workload.formulations()) == {backend}
    assert backend in BACKENDS
    with pytest.raises(ValueError, match="did you mean 'fused'"):
        prepare("operator", "alibi", Setting(**SMALL), backend="fuse")


def test_settings_are_checked():
    setting = Setting(dtype=torch.bfloat16)
    assert (setting.dtype, setting.torch_dtype, setting.dim) == ("bfloat16", torch.bfloat16, 512)
    for given, message in (
        ({"length": 0}, "length: expected an integer of at least 1, got 0"),
        ({"dtype": "int8"}, "dtype: expected one of"),
        ({"direction": "backward"}, "direction: expected one of"),
        ({"device": "tpu"}, "device"),
    ):
        with pytest.raises(ValueError, match=message):
            Setting(**given)
    with pytest.raises(ValueError, match="expected a square number of pixels, got 37"):
        prepare("operator", "swin", replace(Setting(**SMALL), length=37))
    with pytest.raises(ValueError, match="expected at least one, got none"):
        from_calls("nothing", [], Setting())


def test_flops_of_an_operator():
    """2 products forward, 5 more backward, of the pairs that causality leaves."""
    full, causal = (
        prepare("operator", f"standard[causal={each}]", Setting(batch=1, heads=2, length=8, head_dim=4))
        for each in (False, True)
    )
    assert full.flops() == 2 * (2 * 2 * 4) * 64
    assert causal.flops() == 2 * (2 * 2 * 4) * 36
    both = prepare(
        "operator", "standard", Setting(batch=1, heads=2, length=8, head_dim=4, direction="forward+backward")
    )
    assert both.flops() == 2 * (7 * 2 * 4) * 36


def test_flops_of_a_layer_have_its_projections():
    setting = Setting(batch=1, heads=2, length=8, head_dim=4)
    attention = prepare("operator", "standard", setting).flops()
    assert prepare("layer", "standard", setting).flops() == attention + 4 * 2 * 8 * 8 * 8


WORDS = {
    "sdpa": "sdpa",
    "key-bias": "key-bias",
    "channels": "channels",
    "toeplitz": "Toeplitz",
    "mask": "mask",
    "chunkwise": "chunkwise",
    "tiles": "tiles",
}


@pytest.mark.parametrize("name", zoo.names("layer"))
def test_the_trait_names_the_formulation_that_is_used(name):
    told = zoo.get(name).traits.fast_path
    layer, x = modules.build_layer(name, Setting(batch=1, heads=4, length=1024, head_dim=16), "auto")
    for problem in problems(lambda: layer(x)):
        assert WORDS[formulate(problem).name] in told


@pytest.mark.parametrize("name", zoo.names("layer"))
def test_what_is_listed_is_what_runs(name):
    workload = prepare("layer", name, Setting(batch=1, heads=4, length=1024, head_dim=16))
    listed = zoo.fast_paths(name)
    assert listed is not None
    assert listed["cpu"].split(" then ") == list(dict.fromkeys(workload.formulations()))
    assert set(listed) == {"cpu", "cpu, fused", "cuda"}


@pytest.mark.gpu
@pytest.mark.parametrize("name", zoo.names("layer"))
@pytest.mark.parametrize("direction", BOTH)
def test_operators_on_a_gpu(name, direction):
    workload = prepare("operator", name, Setting(**{**SMALL, "head_dim": 16}, device="cuda", direction=direction))
    workload.check()
    assert workload.run()[0].device.type == "cuda"


def test_only_layers_have_fast_paths():
    assert zoo.fast_paths("rotary") is None
    assert zoo.fast_paths("char-gpt") is None
    with pytest.raises(ValueError, match="did you mean 'ega'"):
        zoo.fast_paths("egaa")


def test_levels_are_those_of_the_command():
    from biases.bench import command

    assert command.LEVELS == LEVELS
