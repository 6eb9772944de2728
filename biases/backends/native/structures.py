"""The structures of ``problem.hpp`` and ``retention.hpp``, field by field."""

from __future__ import annotations

import ctypes

I64, DOUBLE, POINTER = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class Term(ctypes.Structure):
    _fields_ = [
        ("table", POINTER),
        ("grad", POINTER),
        ("group_stride", I64),
        ("head_stride", I64),
        ("length", I64),
        ("size", I64),
        ("row", POINTER),
        ("column", POINTER),
        ("stage", I64),
    ]


def _tensor(name: str, strides: int = 3) -> list[tuple[str, type]]:
    return [(name, POINTER), (f"{name}_strides", I64 * strides)]


class Problem(ctypes.Structure):
    _fields_ = [
        *((name, I64) for name in ("batch", "heads", "L", "S", "D", "Dv", "offset", "causal", "window")),
        *((name, I64) for name in ("mode", "threads", "terms", "per_group", "expand", "parts")),
        ("scale", DOUBLE),
        *((name, POINTER) for name in "qkv"),
        *((f"{name}_strides", I64 * 3) for name in "qkv"),
        *_tensor("out"),
        ("top", POINTER),
        ("inverse", POINTER),
        ("key_bias", POINTER),
        ("post_bias", POINTER),
        ("key_bias_strides", I64 * 2),
        ("post_bias_strides", I64 * 2),
        ("mask", POINTER),
        ("mask_batch", I64),
        ("mask_strides", I64 * 3),
        ("term", POINTER),
        *_tensor("grad_out"),
        *((f"grad_{name}", POINTER) for name in "qkv"),
        *((f"grad_{name}_strides", I64 * 3) for name in "qkv"),
        ("grad_key_bias", POINTER),
        ("grad_post_bias", POINTER),
        ("partial_q", POINTER),
        ("shared", POINTER),
        ("scratch", POINTER),
        ("scratch_size", I64),
    ]


class Retention(ctypes.Structure):
    _fields_ = [
        *((name, I64) for name in ("batch", "heads", "L", "D", "Dv", "threads", "parts")),
        ("scale", DOUBLE),
        *(field for name in ("q", "k", "v", "out") for field in _tensor(name)),
        *_tensor("gamma", 2),
        ("shared", POINTER),
        ("scratch", POINTER),
        ("scratch_size", I64),
    ]
