"""Released libraries that offer the same bias, measured beside ours.

At the level of operators a peer is given the tensors of the call of ``attend``; at the level of layers it is built with
the weights of our layer. Either way its results are compared with our specification before it is timed. Each library
is imported only when it is asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from biases.backends.terms import PerKey
from biases.bench import module_checks, modules, operators, passes, workloads
from biases.bench.operators import Operator
from biases.testing.adapters.adapter import fetch, how_to_install

if TYPE_CHECKING:
    from biases.bench.workloads import Setting

Function = Callable[..., Tensor]


class CannotRun(Exception):
    """A peer that is not there, or is not made for this setting; the message says why."""


@dataclass(frozen=True)
class Peer:
    """What a library offers.

    Attributes:
        name: of the library and of what is measured of it.
        package: that must be installed.
        level: ``"operator"`` or ``"layer"``.
        subjects: names of the zoo, options included, that it offers.
        make: for operators, from the operator to a function called as ``attend`` is; for layers, from our layer and the
            setting to a module with the same weights. May raise :class:`CannotRun`.
    """

    name: str
    package: str
    level: str
    subjects: tuple[str, ...]
    make: Callable[..., Any]

    def prepare(self, subject: str, setting: Setting) -> tuple[Callable[[], Any], Callable[[], None]]:
        """What is timed, and the check that comes before.

        Raises:
            CannotRun: the library is not installed, or is not made for this setting.
        """
        if importlib.util.find_spec(self.package) is None:
            fla = "pip install 'attention-biases[fla]'"
            install = fla if self.package == "fla" else how_to_install(self.package)
            raise CannotRun(f"{self.package} is not installed: {install}")
        prepared = self._operator if self.level == "operator" else self._layer
        return prepared(subject, setting)

    def _operator(self, subject: str, setting: Setting) -> tuple[Callable[[], Any], Callable[[], None]]:
        (call,) = workloads.record(subject, setting)
        seed = setting.seed + 1 if setting.backward else None
        with torch.set_grad_enabled(setting.backward):
            operator = Operator.of(call, seed=seed)
            operator = Operator.of(call, seed=seed, function=self.make(operator))
        return operator.run, lambda: operators.check(operator, call, f"{self.name}, {subject}", seed=seed)

    def _layer(self, subject: str, setting: Setting) -> tuple[Callable[[], Any], Callable[[], None]]:
        smaller = modules.checked_setting("layer", subject, setting)

        def build(at: Setting) -> tuple[nn.Module, nn.Module, Tensor]:
            ours, x = modules.build_layer(subject, at, "auto")
            with torch.no_grad():
                return ours, self.make(ours, at).to(at.device, at.torch_dtype).eval(), x

        def check() -> None:
            ours, theirs, x = build(smaller)
            module_checks.check_same_function(theirs, ours, x, smaller, f"{self.name}, {subject}")

        _, theirs, x = build(setting)
        return passes.run_layer(theirs, x, setting), check


def peers_of(level: str, subject: str) -> list[Peer]:
    """The peers of a variant at a level of :mod:`biases.bench.workloads`."""
    return [peer for peer in PEERS if peer.level == level and subject in peer.subjects]


def _x_transformers(operator: Operator) -> Function:
    attend = fetch("x_transformers.attend:Attend")(causal=operator.causal, flash=True, scale=operator.options["scale"])
    bias: nn.Module | None = None
    if operator.options["bias"]:
        bias = fetch("x_transformers.x_transformers:AlibiPositionalBias")(operator.q.shape[1]).to(operator.q.device)

    def run(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        added = None if bias is None else bias(q.shape[2], k.shape[2]).to(q.dtype)
        return attend(q, k, v, attn_bias=added)[0]

    return run


def _transformers_sdpa(operator: Operator) -> Function:
    forward = fetch("transformers.integrations.sdpa_attention:sdpa_attention_forward")
    module = nn.Module()

    def run(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        y, _ = forward(module, q, k, v, None, is_causal=operator.causal, scaling=options["scale"])
        return y.transpose(1, 2)

    return run


def _flash_linear(operator: Operator) -> Function:
    if operator.q.device.type != "cuda":
        raise CannotRun("its kernels need a CUDA device")
    retention = fetch("fla.ops.retention:chunk_retention")

    def run(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        y, _ = retention(*(x.transpose(1, 2) for x in (q, k, v)), scale=options["scale"] or q.shape[-1] ** -0.5)
        return y.transpose(1, 2)

    return run


def _flex(operator: Operator, score_mod: Callable[[Operator], Callable[..., Tensor] | None]) -> Function:
    """``flex_attention`` as its documentation uses it: compiled, the causal mask as a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if operator.q.device.type == "cpu" and operator.grad is not None:
        raise CannotRun("FlexAttention has no backward pass on the CPU")
    if operator.q.device.type == "cpu" and operator.q.dtype == torch.float64:
        raise CannotRun("FlexAttention takes no float64 on the CPU")
    L, S, device = operator.q.shape[2], operator.k.shape[2], str(operator.q.device)
    block_mask = create_block_mask(_at_or_before, None, None, L, S, device=device) if operator.causal else None
    modification, scale = score_mod(operator), operator.options["scale"]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, score_mod=modification, block_mask=block_mask, scale=scale)

    # Code of its own: past so many compilations of one code, it would be run eagerly.
    run = FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)
    compiled: Any = torch.compile(run, dynamic=False, fullgraph=True)
    return lambda q, k, v, **options: compiled(q, k, v)


def _at_or_before(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    return q_idx >= kv_idx


def _by_distance(operator: Operator) -> Callable[..., Tensor]:
    (bias,) = operator.options["bias"]
    slopes = bias.slopes.to(operator.q.device, torch.float32)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score - slopes[h] * (q_idx - kv_idx).abs()

    return score_mod


def _by_map(operator: Operator) -> Callable[..., Tensor]:
    decay = operator.options["decay"]
    rates, width = decay.log_rates.to(operator.q.device, torch.float32), decay.width

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        rows = (q_idx // width - kv_idx // width).abs()
        return score + rates[h] * (rows + (q_idx % width - kv_idx % width).abs())

    return score_mod


def _by_gate(operator: Operator) -> Callable[..., Tensor]:
    log = PerKey(operator.options["key_gate"].log).values

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score + log[b, h, kv_idx]

    return score_mod


def _bloom(ours: Any, setting: Setting) -> nn.Module:
    config = fetch("transformers:BloomConfig")(
        hidden_size=setting.dim, n_head=setting.heads, hidden_dropout=0.0, attention_dropout=0.0
    )
    inner = fetch("transformers.models.bloom.modeling_bloom:BloomAttention")(config, layer_idx=0)
    three = [part.weight.unflatten(0, (setting.heads, -1)) for part in (ours.query, ours.key, ours.value)]
    inner.query_key_value.weight.copy_(torch.stack(three, 1).flatten(0, 2))
    inner.query_key_value.bias.zero_()
    inner.dense.load_state_dict(ours.output.state_dict())
    return _Bloom(inner, setting.heads)


class _Bloom(nn.Module):
    """BLOOM's attention with what its model gives it."""

    def __init__(self, inner: nn.Module, heads: int) -> None:
        super().__init__()
        self.inner, self.heads = inner, heads
        self.alibi: Any = fetch("transformers.models.bloom.modeling_bloom:build_alibi_tensor")

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        alibi = self.alibi(torch.ones(x.shape[0], tokens, device=x.device, dtype=torch.long), self.heads, x.dtype)
        mask = torch.full((tokens, tokens), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device).triu(1)
        return self.inner(x, torch.zeros_like(x), alibi, mask[None, None])[0]


def _timm_windows(ours: Any, setting: Setting) -> nn.Module:
    if setting.side % ours.window:
        raise CannotRun(f"windows of {ours.window} do not tile a map of side {setting.side}")
    made = fetch("timm.models.swin_transformer:WindowAttention")
    inner = made(setting.dim, setting.heads, window_size=ours.window)
    _fill(inner, ours)
    inner.relative_position_bias_table.copy_(ours.relative_position)
    return _Windows(inner, ours.window)


class _Windows(nn.Module):
    """timm's window attention with the partition of its blocks."""

    def __init__(self, inner: nn.Module, window: int) -> None:
        super().__init__()
        self.inner, self.window = inner, window
        home = "timm.models.swin_transformer"
        self.partition: Any = fetch(f"{home}:window_partition")
        self.reverse: Any = fetch(f"{home}:window_reverse")

    def forward(self, x: Tensor) -> Tensor:
        size = (self.window, self.window)
        windows = self.partition(x, size).flatten(1, 2)
        return self.reverse(self.inner(windows).unflatten(1, size), size, x.shape[1], x.shape[2])


def _timm_attention(ours: Any, setting: Setting) -> nn.Module:
    inner = fetch("timm.layers:Attention")(setting.dim, num_heads=setting.heads)
    _fill(inner, ours)
    return inner


def _fill(inner: Any, ours: Any) -> None:
    inner.qkv.weight.copy_(torch.cat([part.weight for part in (ours.query, ours.key, ours.value)]))
    if inner.qkv.bias is not None:
        inner.qkv.bias.copy_(torch.cat([part.bias for part in (ours.query, ours.key, ours.value)]))
    inner.proj.load_state_dict(ours.output.state_dict())


_GATES = ("ega", "ega-2", "ega-4", "ega-conv", "ega-db2", "ega-db4", "ega-morlet", "ega-prefix", "ega-token")
_ALIBI = ("alibi", "alibi-symmetric")
PEERS: Sequence[Peer] = (
    Peer("x-transformers Attend, flash", "x_transformers", "operator", ("standard", *_ALIBI), _x_transformers),
    Peer("transformers sdpa_attention", "transformers", "operator", ("standard",), _transformers_sdpa),
    Peer("flash-linear-attention", "fla", "operator", ("retention",), _flash_linear),
    Peer("FlexAttention", "torch", "operator", ("standard",), partial(_flex, score_mod=lambda operator: None)),
    Peer("FlexAttention", "torch", "operator", _ALIBI, partial(_flex, score_mod=_by_distance)),
    Peer("FlexAttention", "torch", "operator", _GATES, partial(_flex, score_mod=_by_gate)),
    Peer("FlexAttention", "torch", "operator", ("manhattan",), partial(_flex, score_mod=_by_map)),
    Peer("transformers BloomAttention", "transformers", "layer", ("alibi",), _bloom),
    Peer("timm WindowAttention", "timm", "layer", ("swin",), _timm_windows),
    Peer("timm Attention", "timm", "layer", ("standard[causal=False]",), _timm_attention),
)
