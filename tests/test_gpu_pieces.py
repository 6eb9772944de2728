"""The pieces of ``python -m benchmarks.gpu``, on the CPU with tiny shapes."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_pieces, gpu_properties, gpu_tests
from benchmarks.gpu_plan import Plan
from benchmarks.gpu_subjects import OWN, SUBJECTS
from biases import zoo
from biases.backends import choice
from biases.backends.triton import decomposed
from biases.bench import operators


def plan(seconds: float = 60.0, out: Path = Path("none"), committed: Path = Path("none")) -> Plan:
    return Plan("cpu", True, time.monotonic() + seconds, out, committed)


def test_subjects_are_of_the_zoo_or_own() -> None:
    names = [subject.name for subject in SUBJECTS]
    assert len({subject.label for subject in SUBJECTS}) == len(SUBJECTS)
    assert set(OWN) <= set(names) <= {*OWN, *zoo.names("layer")}


def test_subjects_cover_what_cuda_has_more_than_one_backend_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for subject in SUBJECTS:
        sizes = plan().shape(subject.length(144))
        found.add(subject.family(gpu_pieces.Setting(**sizes, direction="forward+backward")))
    wanted = {family for (device, family), row in choice.ORDER.items() if device == "cuda" and row.order}
    assert wanted <= found


def few(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(gpu_pieces, "SUBJECTS", [each for each in SUBJECTS if each.name in names])


@pytest.mark.parametrize("name", ["gated-swin-retention", "gated-swin-swat", "manhattan-decomposed"])
def test_the_kernel_of_both_passes_is_asked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """For windows and for small maps, in what is checked and in what is timed."""
    layers = [each for each in SUBJECTS if each.name == name and each.level == "layer"]
    monkeypatch.setattr(gpu_pieces, "SUBJECTS", layers)
    monkeypatch.setattr(gpu_pieces, "HOPELESS", 0.0)
    real, asked = decomposed.why_not, set()

    def spy(q: torch.Tensor, *others: Any, **options: Any) -> str | None:
        reason = real(q, *others, **options)
        if "interpreter only" in str(reason) or "not installed" in str(reason):
            asked.add(tuple(q.shape[2:4]))
        return reason

    monkeypatch.setattr(decomposed, "why_not", spy)
    for piece in (gpu_pieces.correctness, gpu_pieces.latency):
        asked.clear()
        for label, cell in piece(plan()):
            if label.endswith(("triton", "forward")):
                cell()
        assert {(14, 14), (16, 16)} <= asked if name == "manhattan-decomposed" else asked


def test_correctness_finds_a_wrong_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "alibi")
    by_name = dict(gpu_pieces.correctness(plan()))
    assert by_name["alibi/float32/fused"]()["status"] == "ok"
    true = operators._specified
    monkeypatch.setattr(operators, "_specified", lambda *arguments: tuple(x + 1 for x in true(*arguments)))
    outcome = dict(gpu_pieces.correctness(plan()))["alibi/float32/fused"]()
    assert outcome["status"] == "wrong"
    assert "expected an error of at most" in outcome["message"]


def test_latency_measures_beside_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "alibi")
    monkeypatch.setattr(gpu_pieces, "HOPELESS", float("inf"))
    name, cell = next(iter(gpu_pieces.latency(plan())))
    outcome = cell()
    assert (name, outcome["status"], outcome["family"]) == ("alibi/64/bfloat16/forward", "ok", "small")
    fused = outcome["backends"]["fused"]
    assert fused["status"] == "ok"
    assert fused["ratio"]["rounds"] == 3
    assert fused["peak_bytes"] == pytest.approx(fused["memory_ratio"] * outcome["floor"]["peak_bytes"])
    assert outcome["backends"]["flex"]["status"] == "refused"
    assert outcome["bars"] == {"ratio": 1.10, "memory_ratio": 1.05}
    assert "bar 1.10" in gpu.line(outcome)


def test_what_is_hopeless_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "standard")
    monkeypatch.setattr(gpu_pieces, "HOPELESS", 0.0)
    _, cell = next(iter(gpu_pieces.latency(plan())))
    fused = cell()["backends"]["fused"]
    assert fused["status"] == "slow"
    assert "ratio" not in fused
    assert fused["seconds"] > 0


def test_only_special_backends_may_refuse() -> None:
    def refuse() -> Any:
        raise ValueError("no")

    assert gpu_pieces.guarded(refuse, "flex") == {"status": "refused", "message": "no"}
    assert gpu_pieces.guarded(refuse, "fused")["status"] == "error"
    assert gpu_pieces.guarded(refuse)["status"] == "error"


MARKED = "import pytest\n@pytest.mark.gpu\n@pytest.mark.parametrize('n', range({}))\ndef test_it(n):\n    {}\n"


def project(monkeypatch: pytest.MonkeyPatch, folder: Path, **bodies: tuple[int, str]) -> None:
    """Files of tests marked ``gpu``, by (number of cases, body)."""
    for name in ("tests", "properties"):
        (folder / name).mkdir()
    for name, (count, body) in bodies.items():
        (folder / "tests" / f"test_{name}.py").write_text(MARKED.format(count, body))
    (folder / "tests" / "test_plain.py").write_text("def test_it(): pass\n")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs one\n")
    monkeypatch.setattr(gpu_tests, "ROOT", folder)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def test_tests_are_run_and_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    project(monkeypatch, tmp_path, some=(3, "assert n < 2"))
    outcomes = {name: cell() for name, cell in gpu_tests.tests(plan())}
    function = "tests/test_some.py::test_it"
    assert set(outcomes) == {"collection", f"{function} 1/2", f"{function} 2/2"}
    assert outcomes["collection"] == {"status": "ok", "count": 3}
    good, bad = (outcomes[f"{function} {n}/2"] for n in (1, 2))
    assert (good["status"], good["tests"], bad["status"], bad["tests"]) == ("ok", 2, "wrong", 1)
    assert "assert 2 < 2" in bad["message"]


def test_tests_keep_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is in flight some time after the deadline is stopped, and is tried again by the next run."""
    project(monkeypatch, tmp_path, slow=(1, "import time; time.sleep(300)"))
    monkeypatch.setattr(gpu_tests, "GRACE", 0.5)
    running = plan(1000.0)
    cells = dict(gpu_tests.tests(running))
    object.__setattr__(running, "deadline", time.monotonic())
    late = cells["tests/test_slow.py::test_it"]()
    assert late["status"] not in gpu.SETTLED
    assert "time was up" in late["message"]


def test_files_that_cannot_be_collected_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    project(monkeypatch, tmp_path, broken=(1, "pass\nimport nonsense_that_is_nowhere"))
    (name, cell), *others = gpu_tests.tests(plan())
    assert (name, others, cell()["status"]) == ("collection", [], "error")
    assert "nonsense_that_is_nowhere" in cell()["message"]


@pytest.mark.parametrize("missing", [("pytest",), ("hypothesis",), ("pytest", "hypothesis")])
def test_missing_packages_are_said(monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]) -> None:
    """A package that is not there skips the tests, and is no failure."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else real(name, *rest))
    ((name, cell),) = gpu_tests.tests(plan())
    assert (name, cell()) == (
        "collection",
        {"status": "skipped", "message": f"{' and '.join(missing)} is not installed"},
    )
    if "hypothesis" in missing:
        ((_, battery),) = gpu_properties.properties(plan())
        assert battery()["status"] == "skipped"
    _, packages = next(iter(gpu_pieces.environment(plan())))
    assert set(missing) <= set(packages()["missing"])


def test_the_battery_is_run_on_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_properties, "EXAMPLES", 2)
    full = Plan("cpu", False, time.monotonic() + 60, Path("none"), Path("none"))
    assert [name for name, _ in gpu_properties.properties(full)] == zoo.names("layer")
    outcome = dict(gpu_properties.properties(plan()))["standard"]()
    assert (outcome["status"], outcome["failed"]) == ("ok", [])
    assert outcome["counts"]["passed"] > 5


def test_a_broken_promise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(dim: int, heads: int) -> Any:
        class Layer(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * torch.rand(())

        return Layer()

    monkeypatch.setattr(gpu_properties, "EXAMPLES", 2)
    monkeypatch.setattr(gpu_properties.zoo, "factory", lambda name: drawn)
    outcome = dict(gpu_properties.properties(plan()))["standard"]()
    assert outcome["status"] == "wrong"
    assert "deterministic failed" in outcome["message"]


def test_the_battery_is_run_on_the_device_of_the_plan() -> None:
    elsewhere = Plan("nowhere", True, time.monotonic() + 60, Path("none"), Path("none"))
    outcome = dict(gpu_properties.properties(elsewhere))["standard"]()
    assert outcome["status"] == "error"
    assert "got 'nowhere'" in outcome["message"]
