"""``biases profile``: its arguments, and what it shows."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from biases._checks import fail, one_of
from biases._exit_codes import OK
from biases._files import writable_folder
from biases.attention import BACKENDS
from biases.bench.command import DTYPES, SMALLEST_BATCH, USUAL
from biases.bench.profile.record import Kernel, Operator, Profile, profile
from biases.bench.profile.targets import find, level_of, memory_refused
from biases.bench.table import duration, size
from biases.bench.workloads import LEVELS, Setting, has_own_heads
from biases.testing.targets import is_factory, parse_options

SORTS = ("self", "total", "calls", "memory", "device")
WIDEST_NAME, NARROWEST_NAME = 60, 24
INSTALL = "pip install 'attention-biases[profile]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``biases profile``."""
    parser.add_argument("name", metavar="NAME", help="of the zoo, options included, or module:factory")
    what = "what is run (default: layer of layers, model of models; a position is run inside char-gpt)"
    parser.add_argument("--level", choices=LEVELS, help=what)
    parser.add_argument("--forward-only", action="store_true", help="without gradients")
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: %(default)s)")
    what = f"(default: {USUAL['batch']}; {SMALLEST_BATCH['model']} for models)"
    parser.add_argument("--batch", type=int, metavar="B", help=what)
    parser.add_argument("--heads", type=int, metavar="H", help=f"(default: {USUAL['heads']})")
    parser.add_argument("--head-dim", type=int, metavar="D", help=f"(default: {USUAL['head_dim']})")
    (length,) = USUAL["length"]
    what = "tokens, or pixels of a square map or image (default: %(default)s)"
    parser.add_argument("--length", type=int, default=length, metavar="N", help=what)
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="of attend (default: %(default)s)")
    what = "argument of module:factory; may be repeated"
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=what)
    what = "of module:factory, as domain=image; may be repeated"
    parser.add_argument("--trait", action="append", default=[], metavar="NAME=VALUE", help=what)
    what = "further operators, or ranges of record_function, that are attention: all of their names"
    parser.add_argument("--attention", metavar="REGEX", help=what)
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="recorded (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, metavar="N", help="not recorded (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of weights and inputs (default: %(default)s)")
    parser.add_argument("--sort", choices=SORTS, help="operators by this (default: device on CUDA, else self)")
    parser.add_argument("--top", type=int, default=15, metavar="N", help="operators shown (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", help="where trace and result go (default: runs/profile/NAME)")


def run(options: argparse.Namespace) -> int:
    """``biases profile NAME``: returns the exit code.

    Raises:
        ValueError: a name, sizes, dtype, device or folder that will not do, before anything is profiled; or memory that
            was refused, at any time.
    """
    level = level_of(options.name, options.level)
    setting = _setting(options, level)
    for name in ("steps", "warmup", "top"):
        if getattr(options, name) < 1:
            fail(f"--{name}", "an integer of at least 1", getattr(options, name))
    if options.sort == "device":
        one_of("--device for --sort device", str(setting.device).partition(":")[0], ("cuda",))
    try:
        re.compile(options.attention or "")
    except re.error as error:
        fail("--attention", "a regular expression", f"{options.attention!r} ({error})")
    given = parse_options(options.option)
    with memory_refused(setting):
        target = find(options.name, setting, level=level, backend=options.backend, options=given, traits=options.trait)
    folder = Path(options.out or Path("runs/profile", re.sub(r"[^\w.=,+-]+", "_", options.name).strip("_")))
    writable_folder("--out", folder)
    with memory_refused(setting):
        found = profile(target, folder, steps=options.steps, warmup=options.warmup, pattern=options.attention)
    if options.json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        sort = options.sort or ("self" if found.attention.device_seconds is None else "device")
        print("\n".join(lines(found, sort, options.top, shutil.get_terminal_size((120, 24)).columns)))
    return OK


def _setting(options: argparse.Namespace, level: str) -> Setting:
    usual = {**USUAL, "batch": SMALLEST_BATCH.get(level, USUAL["batch"])}
    chosen = {}
    own_heads = not is_factory(options.name) and has_own_heads(level, options.name)
    for name in ("batch", "heads", "head_dim"):
        given = getattr(options, name)
        if given is not None and name != "batch" and own_heads:
            fail(f"--{name.replace('_', '-')} of {options.name!r}", "none, the model has its own", given)
        chosen[name] = usual[name] if given is None else given
    direction = "forward" if options.forward_only else "forward+backward"
    further = {name: getattr(options, name) for name in ("length", "dtype", "device", "seed")}
    return Setting(**chosen, **further, direction=direction)


def lines(found: Profile, sort: str, top: int, width: int) -> list[str]:
    """The profile for people.

    Args:
        sort: one of :data:`SORTS`.
        top: rows of a table, at most.
        width: of a line.
    """
    steps = ", ".join(map(duration, found.step_seconds))
    shown = [_title(found), f"steps, under the profiler: {steps}", ""]
    shown += _operator_table(found, sort, top, width)
    if found.kernels:
        shown += ["", *_kernel_table(found.kernels, top, width)]
    shown += ["", *_attention(found), "", f"trace: {found.trace}"]
    shown.append("  Perfetto: open https://ui.perfetto.dev and drop the file there; it stays on this machine")
    shown.append(f"  TensorBoard: tensorboard --logdir {shlex.quote(str(found.trace.parent))}")
    shown.append(
        "    (its plug-in is archived upstream, and its page stays empty where www.gstatic.com is not reached)"
    )
    if not all(map(importlib.util.find_spec, ("tensorboard", "torch_tb_profiler"))):
        shown.append(f"  which needs {INSTALL}")
    return shown


def _title(found: Profile) -> str:
    c = found.configuration
    letters = {"B": "batch", "H": "heads", "L": "length", "D": "head_dim"}
    known = {letter: c[name] for letter, name in letters.items() if name in c}
    shape = f"({', '.join(known)}) = {tuple(known.values())}"
    return f"{found.name}, {found.level}, {c['direction']}, {shape}, {c['dtype']} on {c['device']}"


def _operator_table(found: Profile, sort: str, top: int, width: int) -> list[str]:
    on_device = found.attention.device_seconds is not None
    keys = {
        "self": lambda each: each.self_seconds,
        "total": lambda each: each.total_seconds,
        "calls": lambda each: each.calls,
        "memory": lambda each: each.device_bytes if on_device else each.self_bytes,
        "device": lambda each: each.device_seconds or 0.0,
    }
    rows = sorted(found.operators, key=keys[sort], reverse=True)
    headings = ["operator", "calls", "self", "total", "share", "net memory"]
    headings += ["device", "net device memory"] if on_device else []
    table = [headings, *(_cells(row, on_device) for row in rows[:top])]
    left = len(rows) - top
    return [*_aligned(table, width), *([f"and {left} more, in the result"] if left > 0 else [])]


def _cells(row: Operator, on_device: bool) -> list[str]:
    cells = [row.name, f"{row.calls:,}", duration(row.self_seconds), duration(row.total_seconds), _share(row.share)]
    cells.append(_signed(row.self_bytes))
    if on_device:
        cells += [duration(row.device_seconds or 0.0), _signed(row.device_bytes or 0)]
    return cells


def _kernel_table(kernels: Sequence[Kernel], top: int, width: int) -> list[str]:
    rows = [[each.name, f"{each.calls:,}", duration(each.seconds), _share(each.share)] for each in kernels[:top]]
    return _aligned([["kernel", "calls", "device", "share"], *rows], width)


def _aligned(table: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns below their headings, names cut to what fits."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    room = max(NARROWEST_NAME, min(WIDEST_NAME, width - sum(2 + each for each in widths[1:])))
    widths[0] = min(widths[0], room)
    shown = []
    for name, *cells in table:
        cut = name if len(name) <= widths[0] else name[: widths[0] - 1] + "…"
        shown.append("  ".join([cut.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]))
    return shown


def _attention(found: Profile) -> list[str]:
    attention = found.attention
    calls = ", ".join(f"{name} x {calls}" for name, calls in attention.operators.items())
    if attention.share is None:
        return [f"attention: not attributable, {attention.reason}", *([f"  seen: {calls}"] if calls else [])]
    if not calls:
        what = "neither attend nor scaled_dot_product_attention was called; name what else is attention by --attention"
        return [f"attention: 0 %, {what}"]
    whole = "the steps" if attention.device_seconds is None else "the time of the device"
    total = attention.total_seconds
    line = f"attention: {attention.share:.1%} of {whole}"
    if attention.device_seconds is None:
        line += f" (forward {attention.forward_seconds / total:.1%}, backward {attention.backward_seconds / total:.1%})"
    return [line, f"  {calls}"]


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _signed(count: int) -> str:
    return f"-{size(-count)}" if count < 0 else size(count)
