"""Models of one architecture run as one: parameters stacked along a first axis, the model vectorised over it.

What ``torch.func.vmap`` does badly or not at all is done by rules of this module (:class:`_Rules`): products with
weights as one batched product, the stock attention kernel over the models folded into its batch, and dropout with a
random state for each model, so that a model drops what it would drop alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from biases._checks import fail

Dims = tuple[int | None, ...]
Rule = Callable[..., Tensor]


class RandomStates:
    """A state of the random numbers for each model, on the CPU and, where it is one, on the CUDA device.

    Args:
        seeds: each state is that after ``torch.manual_seed`` of its seed.
        device: where the models are.
    """

    def __init__(self, seeds: Sequence[int], device: str) -> None:
        self.cuda = torch.device(device) if torch.device(device).type == "cuda" else None
        with torch.random.fork_rng(devices=[] if self.cuda is None else [self.cuda]):
            self.states = []
            for seed in seeds:
                torch.manual_seed(seed)
                self.states.append(self._get())

    @contextmanager
    def of(self, index: int) -> Iterator[None]:
        """Draw from the state of model ``index``, and advance it."""
        outside = self._get()
        self._set(self.states[index])
        try:
            yield
        finally:
            self.states[index] = self._get()
            self._set(outside)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What is drawn within leaves the states as they were."""
        before = list(self.states)
        try:
            yield
        finally:
            self.states = before

    def _get(self) -> tuple[Tensor, Tensor | None]:
        return torch.get_rng_state(), None if self.cuda is None else torch.cuda.get_rng_state(self.cuda)

    def _set(self, state: tuple[Tensor, Tensor | None]) -> None:
        cpu, cuda = state
        torch.set_rng_state(cpu)
        if cuda is not None and self.cuda is not None:
            torch.cuda.set_rng_state(cuda, self.cuda)


class Stack:
    """Models of one architecture as one.

    Args:
        models: S of them, alike in everything but the values of their parameters and buffers, on one device.
        random: the models' states, for dropout.

    Attributes:
        parameters: name -> (S, ...), leaves of the gradients.

    Raises:
        ValueError: the models differ in names or shapes, or have no parameters.
    """

    def __init__(self, models: Sequence[nn.Module], random: RandomStates) -> None:
        self.model, self.random = models[0], random
        self.size = len(models)
        held = [dict(model.named_parameters()) for model in models]
        buffers = [dict(model.named_buffers()) for model in models]
        for each in (held, buffers):
            shapes = [{name: tuple(x.shape) for name, x in tensors.items()} for tensors in each]
            if any(other != shapes[0] for other in shapes):
                fail("models together", f"the same names and shapes, {shapes[0]}", shapes)
        if not held[0]:
            fail("models together", "parameters", "none")
        self.parameters = {
            name: nn.Parameter(torch.stack([tensors[name].detach() for tensors in held])) for name in held[0]
        }
        self.buffers: dict[str, Tensor] = {}
        self._buffer_dims: dict[str, int | None] = {}
        for name, first in buffers[0].items():
            alike = all(torch.equal(first, tensors[name]) for tensors in buffers[1:])
            self.buffers[name] = first if alike else torch.stack([tensors[name] for tensors in buffers])
            self._buffer_dims[name] = None if alike else 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """What each model makes of its tokens, or all of the same: (S, B, T) or (B, T) -> (S, B, T, V)."""

        def one(parameters: dict[str, Any], buffers: dict[str, Any], x: Tensor) -> Tensor:
            return functional_call(self.model, (parameters, buffers), (x,))

        run = vmap(one, in_dims=(0, self._buffer_dims, 0 if tokens.ndim == 3 else None))
        with _Rules(self.random):
            return run(self.parameters, self.buffers, tokens)

    def groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The optimiser's groups of the first model, for all of them."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [{**group, "params": [self.parameters[names[id(p)]] for p in group["params"]]} for group in groups]

    @torch.no_grad()
    def clip(self, most: float) -> None:
        """Scale the gradients of each model to a norm of at most ``most``, as ``clip_grad_norm_`` does for one."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g.reshape(self.size, -1), dim=1) for g in gradients])
        factors = (most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)).to(gradient.dtype))

    @torch.no_grad()
    def single(self, index: int) -> nn.Module:
        """One of the models, until the next is asked for."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.parameters[name][index])
        for name, buffer in self.model.named_buffers():
            if self._buffer_dims[name] == 0:
                buffer.copy_(self.buffers[name][index])
        return self.model


class _Vectorised(torch.autograd.Function):
    """Calls a rule where ``vmap`` would vectorise a function; gradients are those of what the rule does."""

    @staticmethod
    def forward(rule: Rule, function: Callable[..., Tensor], options: dict[str, Any], *tensors: Any) -> Tensor:
        return function(*tensors, **options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError("no model is vectorised over here, so the function is to be called itself")

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, rule: Rule, function: Callable[..., Tensor], options: dict[str, Any], *tensors: Any
    ) -> tuple[Tensor, int]:
        dims = in_dims[3:]
        first = [x if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, dims, strict=True)]
        return rule(info.batch_size, dims, *first, **options), 0


class _Rules(TorchFunctionMode):
    def __init__(self, random: RandomStates) -> None:
        super().__init__()
        self.random = random

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if function in (torch.dropout, F.dropout):
            return self._dropout(function, *args, **options)
        if function is F.linear:
            return self._linear(*args, **options)
        if function is F.scaled_dot_product_attention:
            return self._attention(*args, **options)
        return function(*args, **options)

    def _dropout(
        self, function: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **named: Any
    ) -> Tensor:
        if not named.get("train", training) or p == 0.0:
            return input
        if inplace:
            return function(input, p, training, inplace)

        def rule(size: int, dims: Dims, x: Tensor, **options: Any) -> Tensor:
            x = _every(size, x, dims[0])
            return x * self._masks(x, p)

        return _Vectorised.apply(rule, torch.dropout, {"p": p, "train": True}, input)

    def _masks(self, x: Tensor, p: float) -> Tensor:
        """What dropout multiplies x (S, ...) by, each model's from its own state."""
        masks = []
        for index, one in enumerate(x.unbind()):
            with self.random.of(index):
                masks.append(torch.dropout(torch.ones_like(one), p, True))
        return torch.stack(masks)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        given = (input, weight) if bias is None else (input, weight, bias)
        return _Vectorised.apply(_linear, F.linear, {}, *given)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **named: Any,
    ) -> Tensor:
        if dropout_p:
            fail("models together: dropout of the stock attention kernel", "0, as its draws are its own", dropout_p)
        given = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
        options = {"is_causal": is_causal, **named}
        return _Vectorised.apply(_attention, F.scaled_dot_product_attention, options, *given)


def _linear(size: int, dims: Dims, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if all(dim is None for dim in dims[1:]):
        return F.linear(x, weight, bias)
    x, weight = _every(size, x, dims[0]), _every(size, weight, dims[1])
    rows = x.flatten(1, -2) if x.ndim > 2 else x.unsqueeze(1)
    if bias is None:
        out = torch.bmm(rows, weight.mT)
    else:
        out = torch.baddbmm(_every(size, bias, dims[2]).unsqueeze(1), rows, weight.mT)
    return out.unflatten(1, x.shape[1:-1]) if x.ndim > 2 else out.squeeze(1)


def _attention(
    size: int, dims: Dims, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any
) -> Tensor:
    q, k, v = (_every(size, x, dim).flatten(0, 1) for x, dim in zip((q, k, v), dims, strict=False))
    if mask is not None:
        mask = _every(size, mask, dims[3])
        mask = mask.reshape(size, *[1] * (q.ndim + 1 - mask.ndim), *mask.shape[1:])
        mask = mask.expand(size, q.shape[0] // size, *mask.shape[2:]).flatten(0, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options).unflatten(0, (size, -1))


def _every(size: int, x: Tensor, dim: int | None) -> Tensor:
    """``x`` for each model, (S, ...)."""
    return x.expand(size, *x.shape) if dim is None else x
