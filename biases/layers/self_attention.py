"""Self-attention that any of the biases can be plugged into."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from biases._checks import boolean, divides, fail, one_of, rank
from biases.attention import BACKENDS, attend, check_decay, check_window, terms
from biases.backends import WEIGHTS, DecayTerm, PairTerm
from biases.registry import register
from biases.traits import Traits


class SelfAttention(nn.Module):
    """Multi-head self-attention, (B, T, C) -> (B, T, C).

    The order is: projections; value gate; rotation of queries and keys; mixing of keys; :func:`biases.attend` with
    score, bias, decay and key gate; head norm; output gate; output projection.

    Args:
        dim: C.
        heads: H, dividing C.
        causal: no token sees a later one.
        window: with ``causal``, how many tokens a token sees, itself included; ``None`` for all before it.
        rotary: (B, H, T, D) -> the same, applied to queries and keys.
        key_mixing: module (k, keep) -> k, with k (B, H, T, D).
        bias: object or objects added to the logits. What they learn must be an ``nn.Parameter``, which the layer then
            trains, moves and saves; so for ``decay``.
        score: module (x, keep) -> :class:`~biases.gates.morlet_score.Score`.
        key_gate: module (x, keep) -> :class:`~biases.backends.KeyGate`.
        value_gate: module (v, x) -> v, both (B, T, C).
        output_gate: module (y, x) -> y, with y (B, H, T, D).
        head_norm: (B, H, T, D) -> the same.
        weights: ``"softmax"``, ``"sigmoid"``, ``"sigmoid-normalised"`` or ``"linear"``.
        decay: decay with distance.
        initialise: called with the finished layer, for variants that are an initialisation.
        dropout: on the weights, in training.
        backend: see :func:`biases.attend`.

    Raises:
        ValueError: heads not dividing dim, unknown options, a component that is not a module where one is needed.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        causal: bool = True,
        window: int | None = None,
        rotary: nn.Module | None = None,
        key_mixing: nn.Module | None = None,
        bias: PairTerm | tuple[PairTerm, ...] = (),
        score: nn.Module | None = None,
        key_gate: nn.Module | None = None,
        value_gate: nn.Module | None = None,
        output_gate: nn.Module | None = None,
        head_norm: nn.Module | None = None,
        weights: str = "softmax",
        decay: DecayTerm | None = None,
        initialise: Callable[[SelfAttention], None] | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.head_dim = divides("SelfAttention", dim, heads)
        one_of("SelfAttention backend", backend, BACKENDS)
        if not 0.0 <= dropout < 1.0:
            fail("SelfAttention dropout", "a probability in [0, 1)", dropout)
        one_of("SelfAttention weights", weights, WEIGHTS)
        if decay is not None:
            check_decay(decay, weights)
        check_window("SelfAttention", window, causal)
        self.dim, self.heads, self.causal, self.window = dim, heads, causal, window
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim)
        self.rotary, self.key_mixing = _module("rotary", rotary), _module("key_mixing", key_mixing)
        self.score, self.key_gate = _module("score", score), _module("key_gate", key_gate)
        self.value_gate = _module("value_gate", value_gate)
        self.output_gate, self.head_norm = _module("output_gate", output_gate), _module("head_norm", head_norm)
        self.bias = terms(bias)
        self.weights, self.decay = weights, decay
        self.learned_terms = nn.ParameterList(_learned(self.bias if decay is None else (*self.bias, decay)))
        self.dropout, self.backend = dropout, backend
        self.own_initialisation = initialise
        if initialise is not None:
            initialise(self)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: (B, T, C).
            keep: (B, T), True for tokens that are not padding; ``None`` if there is none.

        Returns:
            (B, T, C); what stands at padding is not specified.
        """
        self._check(x, keep)
        v = self.value(x)
        if self.value_gate is not None:
            v = self.value_gate(v, x)
        q, k, v = (self._split(y) for y in (self.query(x), self.key(x), v))
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        if self.key_mixing is not None:
            k = self.key_mixing(k, keep)
        bias, key_gate = self.bias, None
        if self.score is not None:
            score = self.score(x, keep)
            q = q * score.query_scale.to(q.dtype)[:, None, None]
            bias, key_gate = (*bias, score.bias), score.key_gate
        if self.key_gate is not None:
            key_gate = self.key_gate(x, keep)
        y = attend(
            q,
            k,
            v,
            bias=bias,
            key_gate=key_gate,
            weights=self.weights,
            decay=self.decay,
            mask=None if keep is None else keep[:, None, None, :],
            causal=self.causal,
            window=self.window,
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
        )
        if self.head_norm is not None:
            y = self.head_norm(y)
        if self.output_gate is not None:
            y = self.output_gate(y, x)
        return self.output(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def _check(self, x: Tensor, keep: Tensor | None) -> None:
        rank("SelfAttention x", x, "B T C")
        if x.shape[-1] != self.dim:
            fail("SelfAttention x", f"width {self.dim}", x.shape[-1])
        if x.shape[1] < 1:
            fail("SelfAttention x", "at least one token", tuple(x.shape))
        if keep is not None and boolean("SelfAttention keep", keep).shape != x.shape[:2]:
            fail("SelfAttention keep", f"shape {tuple(x.shape[:2])}", tuple(keep.shape))

    def extra_repr(self) -> str:
        terms = ", ".join(type(term).__name__ for term in self.bias)
        decay = type(self.decay).__name__ if self.decay is not None else None
        return (
            f"dim={self.dim}, heads={self.heads}, causal={self.causal}, window={self.window}, "
            f"weights={self.weights!r}, bias=[{terms}], decay={decay}, backend={self.backend!r}"
        )


def _module(slot: str, component: nn.Module | None) -> nn.Module | None:
    if component is not None and not isinstance(component, nn.Module):
        fail(f"SelfAttention {slot}", "a module", type(component).__name__)
    return component


@register(
    "standard",
    family="layers",
    summary="softmax attention without any bias, causal",
    traits=lambda options: Traits(
        causal=options["causal"],
        mask=("boolean",),
        masked_values="any",
        normalisation="row",
        empty_row="zero",
        position="none",
        memory="linear",
        fast_path="sdpa",
        published="1706.03762 Eq. 1",
    ),
    parameters="0",
)
def standard(dim: int, heads: int, *, causal: bool = True) -> dict[str, object]:
    return {"causal": causal}


def _learned(terms: tuple[PairTerm, ...]) -> list[nn.Parameter]:
    """The parameters of biases and decays."""
    found = []
    for term in terms:
        for name, value in vars(term).items():
            if isinstance(value, nn.Parameter):
                found.append(value)
            elif isinstance(value, Tensor) and value.requires_grad:
                what = f"SelfAttention: learned {type(term).__name__}{name.replace('_', ' ')}"
                fail(what, "an nn.Parameter, which the layer can train and save", "another tensor that requires grad")
    return found


def set_backend(module: nn.Module, backend: str) -> nn.Module:
    """Set the backend of every attention layer inside ``module``, of images too; returns it.

    An attention layer is a module whose attribute ``backend`` is one of :data:`biases.attention.BACKENDS`.

    Raises:
        ValueError: unknown backend, or no attention layer inside.
    """
    one_of("backend", backend, BACKENDS)
    layers = [part for part in module.modules() if _has_backend(part)]
    if not layers:
        fail("set_backend", "a module with an attention layer inside, such as SelfAttention", type(module).__name__)
    for layer in layers:
        layer.backend = backend  # type: ignore[assignment]
    return module


def _has_backend(module: nn.Module) -> bool:
    backend = getattr(module, "backend", None)
    return isinstance(backend, str) and backend in BACKENDS


def specification(module: nn.Module) -> nn.Module:
    """A copy of ``module`` in float64 on the reference backend: what its output should be."""
    return set_backend(copy.deepcopy(module).to(torch.float64), "reference")
