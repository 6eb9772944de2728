"""Attention of other libraries, put to the battery."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from biases.testing import Traits, check_attention, kinds
from biases.testing.adapters import Adapter, catalogue, flex, huggingface, missing, peers, pytorch, timm, x_transformers
from biases.testing.adapters.adapter import how_to_install

PACKAGES = ("transformers", "timm", "x_transformers")
OF_TORCH = ["torch-sdpa-causal", "torch-mha-causal", "torch-encoder-layer", "torch-flex-window"]
FEW = ("shape-dtype-device", "finite-gradient", "deterministic", "future-independence", "batch-independence")


def of_package(name: str) -> None:
    pytest.importorskip(name, reason=f"needs {name} that imports: {how_to_install(name)}", exc_type=Exception)


def failed(factory: Adapter, **arguments: object) -> set[str]:
    results = check_attention(factory, max_examples=3, properties=FEW, **arguments)  # type: ignore[arg-type]
    assert any(result.status == "passed" for result in results)
    return {result.property for result in results if result.status not in ("passed", "not_applicable")}


class TestSubjects:
    @pytest.mark.parametrize("name", OF_TORCH)
    def test_torch_keeps_its_promises(self, name: str) -> None:
        assert failed(peers()[name]) == set()

    @pytest.mark.parametrize("name", ["transformers-llama", "transformers-llama-decoding", "transformers-bloom"])
    def test_transformers_keeps_its_promises(self, name: str) -> None:
        of_package("transformers")
        assert failed(peers()[name]) == set()

    @pytest.mark.parametrize("name", ["timm-attention-causal", "timm-swin-shifted"])
    def test_timm_keeps_its_promises(self, name: str) -> None:
        of_package("timm")
        assert failed(peers()[name]) == set()

    @pytest.mark.parametrize("name", ["x-transformers-alibi-flash", "x-transformers-rotary"])
    def test_x_transformers_keeps_its_promises(self, name: str) -> None:
        of_package("x_transformers")
        assert failed(peers()[name]) == set()

    def test_a_false_promise_is_found(self) -> None:
        look_ahead = pytorch.multihead(traits=Traits(causal=True))
        assert "future-independence" in failed(look_ahead)

    def test_known_failures_are_real(self) -> None:
        of_package("transformers")
        gpt2 = peers()["transformers-gpt2"]
        names = list(gpt2.known_failures)
        results = check_attention(gpt2, max_examples=15, properties=names, known_failures=gpt2.known_failures)
        assert [result.status for result in results] == ["xfailed"] * len(names)


class TestPadding:
    """Tokens that ``keep`` leaves out must be as if they were not there."""

    @pytest.mark.parametrize("name", ["torch-mha", "torch-mha-causal", "torch-encoder-stack"])
    def test_torch(self, name: str) -> None:
        self.check(peers()[name])

    @pytest.mark.parametrize(
        "name",
        ["llama", "llama-grouped", "mistral", "gpt2", "bloom", "falcon", "bert", "t5-encoder", "t5-decoder"],
    )
    def test_transformers(self, name: str) -> None:
        of_package("transformers")
        self.check(peers()[f"transformers-{name}"])

    @pytest.mark.parametrize("name", ["timm-attention", "timm-attention-causal", "x-transformers-alibi"])
    def test_others(self, name: str) -> None:
        of_package("timm" if name.startswith("timm") else "x_transformers")
        self.check(peers()[name])

    @staticmethod
    def check(factory: Adapter) -> None:
        layer = factory(16, 2).eval()
        x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
        keep = torch.arange(6)[None] < torch.tensor([[4], [6]])
        with torch.no_grad():
            padded, alone, whole = layer(x, keep), layer(x[:1, :4]), layer(x)
        torch.testing.assert_close(padded[:1, :4], alone)
        torch.testing.assert_close(padded[1], whole[1])
        assert whole[1].abs().max() > 0


class TestAgainstTheirFormulas:
    def test_flex_alibi_is_sdpa_with_the_bias(self) -> None:
        q, k, v = torch.randn(3, 2, 4, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        distance = torch.arange(6)[:, None] - torch.arange(6)
        slopes = torch.tensor([0.25, 0.0625, 0.015625, 0.00390625], dtype=torch.float64)
        bias = (-slopes[:, None, None] * distance).masked_fill(distance < 0, -torch.inf)
        q.requires_grad_()
        expected = scaled_dot_product_attention(q, k, v, attn_mask=bias)
        got = flex.flex_alibi(32, 4)(q, k, v)
        torch.testing.assert_close(got, expected)
        (of_got,), (of_expected,) = (torch.autograd.grad(x.square().sum(), q) for x in (got, expected))
        torch.testing.assert_close(of_got, of_expected)
        with torch.no_grad():
            torch.testing.assert_close(flex.flex_alibi(32, 4)(q, k, v), expected)

    def test_flex_leaves_its_switch_as_it_was(self) -> None:
        from torch.nn.attention import flex_attention as module

        q = torch.randn(1, 1, 3, 4)
        before = module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
        with pytest.raises(ZeroDivisionError):
            flex.operator(lambda score, b, h, i, j: score * (1 // 0))(4, 1)(q, q, q)
        assert module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG is before

    @pytest.mark.parametrize("name", ["torch-flex-window-mask", "transformers-sliding-window-mask"])
    def test_window_masks(self, name: str) -> None:
        if name.startswith("transformers"):
            of_package("transformers")
        behind = torch.arange(5)[:, None] - torch.arange(7)
        factory = peers()[name]
        assert factory.traits.window is not None
        assert torch.equal(factory(16, 2)(5, 7), (behind >= 0) & (behind < factory.traits.window))

    @pytest.mark.parametrize("name", ["transformers-bloom-slopes", "x-transformers-alibi-slopes"])
    def test_slopes(self, name: str) -> None:
        of_package("transformers" if name.startswith("transformers") else "x_transformers")
        torch.testing.assert_close(peers()[name](32, 4)(), torch.tensor([0.25, 0.0625, 0.015625, 0.00390625]))

    @pytest.mark.parametrize("name", ["transformers-llama-decoding", "transformers-mistral-decoding"])
    def test_decoding_is_prefill_in_pieces(self, name: str) -> None:
        of_package("transformers")
        decode = peers()[name](16, 2).eval()
        x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            whole, _ = decode(x, None)
            state, pieces = None, []
            for piece in x.split(1, dim=1):
                out, state = decode(piece, state)
                pieces.append(out)
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole)

    def test_llama_reads_positions(self) -> None:
        of_package("transformers")
        x = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
        encode = peers()["transformers-llama-rotary"](16, 2)
        torch.testing.assert_close(encode(x, torch.zeros(5, dtype=torch.long)), x)
        assert not torch.allclose(encode(x, torch.arange(5)), x)


class TestCatalogue:
    def test_every_subject_says_what_it_is(self) -> None:
        assert len(catalogue.SUBJECTS) >= 22
        for name, factory in catalogue.SUBJECTS.items():
            assert factory.kind in kinds.KINDS, name
            assert isinstance(factory.traits, Traits), name
            assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)+", name)

    def test_scripts_bind_the_factory_itself(self) -> None:
        for name, factory in catalogue.SUBJECTS.items():
            namespace: dict[str, object] = {}
            exec(factory.how_to_build, namespace)
            assert namespace["make_layer"] is factory, name

    def test_a_missing_package_is_named_with_its_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "x_transformers", None)
        monkeypatch.delitem(sys.modules, "x_transformers.x_transformers", raising=False)
        assert "attention-biases[peers]" in missing()["x-transformers-causal"]
        assert not any(name.startswith("x-transformers") for name in peers())
        assert "torch-sdpa" in peers()
        with pytest.raises(ModuleNotFoundError, match=r"attention-biases\[peers\]"):
            x_transformers.causal(16, 2)

    def test_a_broken_package_hides_no_other(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
            monkeypatch.delitem(sys.modules, name)
        (tmp_path / "timm.py").write_text("raise RuntimeError('operator nms does not exist')")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert missing()["timm-swin"] == "timm cannot be imported: RuntimeError: operator nms does not exist"
        assert "torch-sdpa" in peers()

    def test_importing_it_imports_torch_alone(self) -> None:
        code = f"import sys, biases.testing.adapters; print([p for p in {PACKAGES} if p in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class Twice(nn.MultiheadAttention):
    """Somebody's own class."""


def double(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    return 2 * score


class TestOnesOwn:
    def test_a_class_that_is_called_like_multihead_attention(self) -> None:
        factory = pytorch.multihead(Twice, causal=True, bias=False)
        assert failed(factory) == set()
        namespace: dict[str, object] = {}
        exec(factory.how_to_build, namespace)
        again = namespace["make_layer"]
        assert isinstance(again, Adapter)
        assert isinstance(again(16, 2).inner, Twice)
        assert again(16, 2).inner.in_proj_bias is None
        assert again.traits == factory.traits

    def test_a_score_mod(self) -> None:
        q = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
        out = flex.operator(double)(16, 2)(q, q, q)
        torch.testing.assert_close(out, scaled_dot_product_attention(q, q, q, scale=2 * 8**-0.5))

    def test_a_class_of_transformers(self) -> None:
        of_package("transformers")
        from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig

        factory = huggingface.attention(LlamaAttention, LlamaConfig, num_key_value_heads=1)
        assert factory(16, 2).inner.k_proj.out_features == 8
        namespace: dict[str, object] = {}
        exec(factory.how_to_build, namespace)
        assert isinstance(namespace["make_layer"], Adapter)

    def test_a_name_that_a_version_does_not_have(self) -> None:
        of_package("transformers")
        with pytest.raises(ValueError, match="a version that has Nothing"):
            huggingface.attention("transformers:Nothing", "transformers:LlamaConfig")(16, 2)

    def test_a_modification_must_be_callable(self) -> None:
        with pytest.raises(ValueError, match="score_mod"):
            flex.operator(1.0)  # type: ignore[arg-type]

    def test_timm_fused_and_not_are_one(self) -> None:
        of_package("timm")
        x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
        fused, unfused = (timm.attention(causal=True, fused=each)(16, 2) for each in (True, False))
        unfused.load_state_dict(fused.state_dict())
        torch.testing.assert_close(fused(x), unfused(x))
