"""What the tests of ``biases profile`` profile."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import record_function

from biases import zoo
from biases.cli import main

TARGETS = __name__
TINY = ["--length", "64", "--heads", "2", "--head-dim", "16", "--steps", "2"]


def linear(dim, heads):
    return nn.Linear(dim, dim)


def stock(dim, heads):
    """Nothing but attention."""

    def attention(x):
        q = x.unflatten(-1, (heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)

    return attention


def by_hand(dim, heads, *, name="mine"):
    def attention(x):
        with record_function(name):
            x = torch.softmax(x @ x.transpose(1, 2), -1) @ x
        return x.sin()

    return attention


class MultiheadAttention(nn.Module):
    def __init__(self, dim, heads, need_weights):
        super().__init__()
        self.inner, self.need_weights = nn.MultiheadAttention(dim, heads, batch_first=True), need_weights

    def forward(self, x):
        return self.inner(x, x, x, need_weights=self.need_weights)[0]


def multihead(dim, heads, *, need_weights=True):
    return MultiheadAttention(dim, heads, need_weights)


def encoder(dim, heads):
    return nn.TransformerEncoderLayer(dim, heads, dim, batch_first=True)


def compiled(dim, heads):
    return torch.compile(nn.Linear(dim, dim), backend="eager")


class RaisesInBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        raise RuntimeError("not written yet")


def raises(dim, heads, *, backward=False):
    return RaisesInBackward.apply if backward else lambda x: x @ x


def a_pair(dim, heads):
    return lambda x: (x, x)


def an_image(dim, heads):
    return zoo.layer("swin", dim, heads)


def interrupted(dim, heads):
    calls = []

    def layer(x):
        calls.append(x)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return x.sin()

    return layer


def profiled(folder, *arguments):
    """The result of ``biases profile``, which must succeed."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["profile", *arguments, "--out", str(folder), "--json"]) == 0
    return json.loads(out.getvalue())
