"""``biases profile``: the trace opens in its viewers, and what is called attention is attention."""

from __future__ import annotations

import gzip
import importlib.util
import json
import queue
import threading
import time
import warnings
from bisect import bisect_right
from collections import Counter
from pathlib import Path

import pytest
import torch
from profile_targets import TARGETS, TINY, profiled

from biases import attend, formulation
from biases.axial import attend_decomposed
from biases.backends.triton import decomposed
from biases.bench import Setting
from biases.bench.profile import command, find, marks, profile
from biases.bench.profile.marks import ATTEND, DECOMPOSED, Marker
from biases.cli import main

ROUNDING = 1e-6  # seconds, of sums of times that are written in nanoseconds


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """One profile for all that only read it."""
    return profiled(tmp_path_factory.mktemp("profile") / "alibi", "alibi", *TINY)


@pytest.fixture(scope="module")
def trace(traced):
    return json.loads(Path(traced["trace"]).read_text())


@pytest.fixture(scope="module")
def fetch(traced):
    """Calls the plug-in of TensorBoard, which has read the folder of the profile, as its web server would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if importlib.util.find_spec("torch_tb_profiler") is None:
            pytest.skip("torch-tb-profiler is not installed")
        from absl import logging
        from tensorboard.plugins.base_plugin import TBContext
        from torch_tb_profiler.plugin import TorchProfilerPlugin
        from torch_tb_profiler.profiler import loader
        from werkzeug.test import Client
    with pytest.MonkeyPatch.context() as patch:
        # It reads every trace in a process of its own, and changes the logging there.
        patch.setattr(loader, "Process", threading.Thread)
        patch.setattr(loader, "Queue", queue.Queue)
        patch.setattr(logging, "use_absl_handler", lambda: None)
        apps = TorchProfilerPlugin(TBContext(logdir=str(Path(traced["trace"]).parent.parent))).get_plugin_apps()

        def get(route, **query):
            answer = Client(apps[route]).get("/", query_string=query)
            assert answer.status_code == 200, (route, answer.data)
            packed = answer.headers.get("Content-Encoding") == "gzip"
            return json.loads(gzip.decompress(answer.data) if packed else answer.data)

        deadline = time.monotonic() + 120
        while not (runs := get("/runs"))["runs"] or runs["loading"]:
            assert time.monotonic() < deadline, "the plug-in read nothing"
            time.sleep(0.02)
    return get


def test_the_trace_is_json_that_perfetto_imports(trace, traced):
    """An object with ``traceEvents`` in microseconds; its importer drops slices of a thread that overlap in part."""
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} == {"X", "M", "i", "s", "f"}
    assert all(isinstance(event["ts"], int | float) for event in events)
    tracks = {}
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["name"]
            start = round(1000 * event["ts"])
            tracks.setdefault((event["pid"], event["tid"]), []).append((start, -round(1000 * event["dur"])))
    for track in tracks.values():
        ends = []
        for start, minus in sorted(track):
            while ends and ends[-1] <= start:
                ends.pop()
            assert not ends or start - minus <= ends[-1]
            ends.append(start - minus)
    flows = Counter((event["cat"], event["id"], event["ph"]) for event in events if event["ph"] in "sf")
    assert set(flows.values()) == {1}
    assert {(cat, key) for cat, key, ph in flows if ph == "s"} == {(cat, key) for cat, key, ph in flows if ph == "f"}
    assert traced["attention"]["operators"].keys() <= {event["name"] for event in events}
    assert trace["biases"]["configuration"] == traced["configuration"]


def test_the_plugin_shows_the_trace(fetch, traced):
    (run,) = fetch("/runs")["runs"]
    assert run == "alibi"
    assert fetch("/views", run=run) == ["Overview", "Operator", "Trace", "Memory"]
    for view in ("Overview", "Operator", "Trace", "Memory"):
        (worker,) = fetch("/workers", run=run, view=view)
        assert Path(traced["trace"]).name.startswith(f"{worker}.")
    (span,) = fetch("/spans", run=run, worker=worker)
    where = {"run": run, "worker": worker, "span": span}
    assert len(fetch("/overview", **where)["steps"]["rows"]) == 2
    (name,) = traced["attention"]["operators"]
    rows = {row["name"]: row for row in fetch("/operation/table", group_by="Operation", **where)["data"]}
    assert rows[name]["calls"] == 2
    shapes = {row["name"]: row for row in fetch("/operation/table", group_by="OperationAndInputShape", **where)["data"]}
    assert "[1, 2, 64, 16]" in str(shapes[name]["input_shape"])
    for route in ("/operation", "/trace", "/memory", "/tree"):
        assert name in json.dumps(fetch(route, group_by="Operation", **where)), route
    assert fetch("/memory_curve", **where)["metadata"]["devices"] == ["CPU"]


def linked(trace, operators):
    """Seconds of the operators, and of what autograd ran for what was created in them, by the arrows that the profiler
    draws from an operator to its backward."""
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X" and event.get("cat") == "cpu_op"]
    forward = sorted((event["ts"], event["ts"] + event["dur"]) for event in slices if event["name"] in operators)
    sources = {event["id"]: event["ts"] for event in trace["traceEvents"] if event["ph"] == "s"}
    targets = {event["ts"]: event["id"] for event in trace["traceEvents"] if event["ph"] == "f"}
    engine = {event["ts"]: event for event in slices if event["name"].startswith("autograd::engine")}
    starts, backward = sorted(engine), 0.0
    for at, key in targets.items():
        source = sources[key]
        if any(start <= source < end for start, end in forward):
            backward += engine[starts[bisect_right(starts, at) - 1]]["dur"]
    return 1e-6 * sum(end - start for start, end in forward), 1e-6 * backward


def test_share_and_table_agree_with_the_trace(trace, traced):
    attention, steps = traced["attention"], traced["step_seconds"]
    forward, backward = linked(trace, attention["operators"])
    assert 0 < forward == pytest.approx(attention["forward_seconds"], abs=ROUNDING)
    assert 0 < backward == pytest.approx(attention["backward_seconds"], abs=ROUNDING)
    written = [event for event in trace["traceEvents"] if event["name"].startswith("ProfilerStep#")]
    assert steps == pytest.approx([1e-6 * event["dur"] for event in written], abs=ROUNDING)
    assert attention["total_seconds"] == pytest.approx(sum(steps))
    assert attention["share"] == pytest.approx((forward + backward) / sum(steps), rel=1e-3)
    rows = traced["operators"]
    assert sum(row["self_seconds"] for row in rows) == pytest.approx(sum(steps), abs=ROUNDING)
    assert sum(row["share"] for row in rows) == pytest.approx(1.0, abs=1e-4)
    shares = [row["share"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    calls = Counter(event["name"] for event in trace["traceEvents"] if event.get("cat") == "cpu_op")
    for name in (*attention["operators"], "aten::mm", "aten::linear"):
        (row,) = (row for row in rows if row["name"] == name)
        assert row["calls"] == calls[name]
        assert row["total_seconds"] >= row["self_seconds"] > 0


def test_memory_agrees_with_the_trace(trace, traced):
    changes = [event["args"] for event in trace["traceEvents"] if event["name"] == "[memory]"]
    assert any(change["Bytes"] > 0 for change in changes)
    net = sum(change["Bytes"] for change in changes if change["Device Type"] == 0)
    assert sum(row["self_bytes"] for row in traced["operators"]) == net


def test_the_result_lies_beside_the_trace(traced):
    path = Path(traced["trace"])
    (result,) = (file for file in path.parent.iterdir() if file != path)
    assert result.suffix == ".json"
    assert path.name.startswith(f"{result.stem}.")
    assert json.loads(result.read_text()) == traced
    configuration = traced["configuration"]
    assert (configuration["seed"], configuration["device"], configuration["direction"]) == (
        0,
        "cpu",
        "forward+backward",
    )
    assert (configuration["steps"], configuration["warmup"], configuration["backend"]) == (2, 1, "auto")
    assert {"torch", "git_revision", "cpu"} <= traced["machine"].keys()
    assert all(row["device_seconds"] is None for row in traced["operators"])
    assert traced["kernels"] == []


def test_profiles_in_one_folder_stay_apart(tmp_path):
    first, second = (profiled(tmp_path, f"{TARGETS}:linear", *TINY) for _ in range(2))
    traces = [Path(each["trace"]).name for each in (first, second)]
    workers = {trace.removesuffix(".pt.trace.json").rpartition(".")[0] for trace in traces}
    assert len(workers) == 2
    assert {path.name for path in tmp_path.iterdir()} == {*traces, *(f"{worker}.json" for worker in workers)}


def test_what_has_no_attention_has_no_share(tmp_path):
    attention = profiled(tmp_path, f"{TARGETS}:linear", *TINY)["attention"]
    assert (attention["share"], attention["seconds"], attention["operators"]) == (0.0, 0.0, {})


def test_what_is_only_attention_is_all_attention(tmp_path):
    found = profiled(tmp_path, f"{TARGETS}:stock", *TINY, "--length", "512")
    (between,) = (row["self_seconds"] for row in found["operators"] if row["name"] == "ProfilerStep*")
    attention = found["attention"]
    assert attention["operators"] == {"aten::scaled_dot_product_attention": 2}
    assert attention["seconds"] / (attention["total_seconds"] - between) > 0.8
    assert attention["backward_seconds"] > 0.2 * attention["seconds"]


@pytest.mark.parametrize(
    ("arguments", "attributed"),
    [
        (["multihead"], False),
        (["multihead", "--forward-only"], False),
        (["multihead", "--option", "need_weights=False", "--forward-only"], False),
        (["multihead", "--option", "need_weights=False"], True),
        (["encoder", "--forward-only"], False),
        (["encoder"], True),
    ],
)
def test_attention_of_torch_is_counted_or_not_attributable(arguments, attributed, tmp_path):
    """Fused layers hold projections too, and with weights attention is written out."""
    attention = profiled(tmp_path, f"{TARGETS}:{arguments[0]}", *TINY, *arguments[1:])["attention"]
    if attributed:
        assert 0 < attention["share"] < 1
        assert attention["operators"] == {"aten::scaled_dot_product_attention": 2}
    else:
        assert attention["share"] is None
        assert "--attention" in attention["reason"]


def test_forward_only(tmp_path):
    found = profiled(tmp_path, "alibi", *TINY, "--forward-only", "--backend", "dense")
    assert found["attention"]["operators"] == {"biases::attend (dense)": 2}
    assert found["attention"]["backward_seconds"] == 0.0
    assert not any("Backward" in row["name"] for row in found["operators"])


def test_attention_of_ones_own_is_named(tmp_path, capsys):
    target = f"{TARGETS}:by_hand"
    assert profiled(tmp_path, target, *TINY)["attention"]["share"] is None
    found = profiled(tmp_path, target, *TINY, "--attention", "mi.e", "--option", "name=mine")
    assert (found["configuration"]["options"], found["configuration"]["attention_pattern"]) == (
        {"name": "mine"},
        "mi.e",
    )
    attention = found["attention"]
    assert attention["operators"] == {"mine": 2}
    assert attention["forward_seconds"] > 0
    assert attention["backward_seconds"] > 0
    assert main(["profile", target, *TINY, "--out", str(tmp_path)]) == 0
    assert "no operator is known to be attention, but aten::bmm, aten::softmax" in capsys.readouterr().out
    assert main(["profile", f"{TARGETS}:linear", *TINY, "--out", str(tmp_path)]) == 0
    assert "neither attend nor scaled_dot_product_attention was called" in capsys.readouterr().out


def test_compiled_code_is_not_attributable(tmp_path, capsys):
    assert main(["profile", f"{TARGETS}:compiled", *TINY, "--out", str(tmp_path)]) == 0
    assert "attention: not attributable, compiled code is one operator" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "calls", "further"),
    [
        ("char-gpt[layers=2]", 2, ["--level", "training"]),
        ("rotary[base=100.0]", 6, []),
        ("alibi", 1, ["--level", "operator"]),
        ("manhattan-decomposed", 2, []),
        (f"{TARGETS}:an_image", 1, ["--trait", "domain=image"]),
    ],
)
def test_every_kind_of_name(name, calls, further, tmp_path):
    found = profiled(tmp_path, name, *TINY, "--length", "16", *further)
    assert found["name"] == name
    assert sum(found["attention"]["operators"].values()) == 2 * calls
    assert 0 < found["attention"]["share"] < 1
    assert found["attention"]["backward_seconds"] > 0


def test_the_kernel_of_both_passes_is_marked(monkeypatch):
    """Marking calls of ``attend`` must not keep ``attend_decomposed`` from its kernel."""
    monkeypatch.setattr(decomposed, "why_not", lambda *tensors, **options: None)
    monkeypatch.setattr(decomposed, "run", lambda q, k, v, **options: q + v)
    q = torch.randn(1, 1, 4, 4, 8)
    marker = Marker()
    with marker.active(), torch.profiler.profile() as recorded:
        out = attend_decomposed(q, q, q, backend="triton")
    assert torch.equal(out, 2 * q)
    assert [event.name for event in recorded.events() if event.name.startswith("biases::")] == [DECOMPOSED]


def test_how_a_call_is_run_is_found_in_the_first_pass(monkeypatch):
    """Finding it takes time, which recorded steps must not."""
    asked = []
    monkeypatch.setattr(marks, "formulation", lambda *qkv, **options: asked.append(1) or formulation(*qkv, **options))
    q = torch.randn(1, 1, 4, 8)
    marker = Marker()
    with marker.active():
        for _ in range(3):
            marker.begin_pass()
            attend(q, q, q)
            attend(q, q, q, backend="dense")
            attend(q, q, q, causal=True)
    assert len(asked) == 2


def test_an_interrupted_profile_leaves_nothing(tmp_path):
    folder = tmp_path / "out"
    assert main(["profile", f"{TARGETS}:interrupted", *TINY, "--out", str(folder)]) == 130
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alibbi"], "did you mean 'alibi'"),
        (["alibi[nothing=1]"], "option of alibi"),
        (["alibi", "--level", "model"], "level of 'alibi': expected one of 'layer', 'operator', got 'model'"),
        (["char-gpt", "--level", "training", "--forward-only"], "direction of a training step"),
        (["swin", "--length", "60"], "expected a square number of pixels, got 60"),
        (["swin-t", "--heads", "2"], "--heads of 'swin-t': expected none, the model has its own, got 2"),
        (["alibi", "--length", "0"], "length: expected an integer of at least 1, got 0"),
        (["alibi", "--length", "99999999999"], "batch 1, length 99999999999, width 32: expected an input within"),
        (["alibi", "--head-dim", "1" + "0" * 7], "expected what fits into the memory, got "),
        (["alibi", "--steps", "0"], "--steps: expected an integer of at least 1, got 0"),
        (["alibi", "--sort", "device"], "--device for --sort device"),
        (["alibi", "--device", "tpu"], "device: expected"),
        (["alibi", "--attention", "("], "--attention: expected a regular expression"),
        (["alibi", "--option", "a=1"], "options of 'alibi': expected none"),
        (["alibi", "--trait", "causal=true"], "traits of 'alibi': expected none"),
        (["json:nothing"], "attribute 'nothing' of 'json:nothing'"),
        ([f"{TARGETS}:linear", "--option", "a=1"], "linear(32, 2, a=1): expected a layer, got TypeError"),
        ([f"{TARGETS}:linear", "--backend", "dense"], "expected none, a factory chooses its own, got dense"),
        ([f"{TARGETS}:raises"], "raises': expected one without an error, got RuntimeError: "),
        ([f"{TARGETS}:raises", "--option", "backward=True"], "an error, got RuntimeError: not written yet"),
        ([f"{TARGETS}:a_pair"], "expected a tensor of shape (1, 16, 32), as its input, got tuple"),
        (["alibi", "--out", __file__], "--out: expected a folder that can be written in"),
    ],
)
def test_bad_input_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [] if "swin-t" in arguments else ["--heads", "2", "--head-dim", "16"]
    code = main(["profile", "--length", "16", *small, *arguments])
    assert (code, message in " ".join(capsys.readouterr().err.split())) == (2, True)
    assert list(tmp_path.rglob("*.json")) == []


def test_memory_that_is_refused_is_bad_input_and_no_other_error_is():
    for error, raised in ((torch.OutOfMemoryError("on CUDA"), ValueError), (RuntimeError("mine"), RuntimeError)):
        with pytest.raises(raised), command.memory_refused(Setting()):
            raise error


def test_the_table_for_people(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert main(["profile", "alibi", *TINY, "--sort", "calls", "--top", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "alibi, layer, forward+backward, (B, H, L, D) = (1, 2, 64, 16), float32 on cpu"
    heading = next(n for n, line in enumerate(shown) if line.startswith("operator"))
    assert shown[heading].split() == ["operator", "calls", "self", "total", "share", "net", "memory"]
    assert shown[heading + 4].endswith("more, in the result")
    assert all(len(line) <= 100 for line in shown[heading : heading + 4])
    assert any(line.startswith("attention: ") and "% of the steps (forward " in line for line in shown)
    (trace,) = Path("runs/profile/alibi").glob("*.pt.trace.json")
    assert f"trace: {trace}" in shown
    assert any("ui.perfetto.dev" in line for line in shown)
    assert any("tensorboard --logdir runs/profile/alibi" in line for line in shown)
    assert any("archived" in line and "www.gstatic.com" in line for line in shown)
    assert "  which needs pip install 'attention-biases[profile]'" in shown


def test_operators_are_ordered_without_times_of_the_device(tmp_path):
    """As where no kernels were recorded on CUDA."""
    found = profile(find("alibi", Setting(length=16, heads=2, head_dim=16)), tmp_path, steps=1)
    assert command.lines(found, "device", 3, 100)[3].startswith("operator")


def test_without_operators_of_ones_own_in_torch_ranges_are_marked(monkeypatch):
    monkeypatch.delattr(torch._C._profiler, "_RecordFunctionFast")
    q = torch.randn(1, 1, 4, 8)
    with Marker().active(), torch.profiler.profile() as recorded:
        attend(q, q, q, backend="dense")
    assert [event.name for event in recorded.events() if event.name.startswith("biases::")] == [f"{ATTEND} (dense)"]


@pytest.mark.gpu
def test_kernels_of_the_device_are_attributed(tmp_path):
    found = profiled(tmp_path, "alibi", *TINY, "--length", "512", "--device", "cuda", "--dtype", "bfloat16")
    attention = found["attention"]
    assert attention["total_seconds"] == pytest.approx(sum(kernel["seconds"] for kernel in found["kernels"]))
    assert 0 < attention["device_seconds"] < attention["total_seconds"]
    assert attention["share"] == pytest.approx(attention["device_seconds"] / attention["total_seconds"])
    launched = sum(row["device_seconds"] for row in found["operators"])
    assert launched == pytest.approx(attention["total_seconds"], rel=1e-3)
    assert attention["backward_seconds"] > 0


@pytest.mark.gpu
def test_what_is_only_attention_is_all_attention_on_the_device(tmp_path):
    cuda = ["--length", "2048", "--device", "cuda", "--dtype", "bfloat16"]
    attention = profiled(tmp_path, f"{TARGETS}:stock", *TINY, *cuda)["attention"]
    assert attention["share"] > 0.8
    assert attention["backward_seconds"] > 0
