"""The battery inside pytest: options, known failures, the summary and exit codes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from biases.testing import PROPERTIES, check_attention

pytest_plugins = "pytester"

LAYERS = """
    import torch
    from torch import nn

    from biases.testing import Traits, check_attention, parametrize_with_properties

    CAUSAL = Traits(causal=True)

    class Mean(nn.Module):
        def __init__(self, dim, heads):
            super().__init__()

        def forward(self, x):
            return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None].to(x)

    class Leaky(Mean):
        def forward(self, x):
            return x - x.mean(1, keepdim=True)
"""
ONE = """
    @parametrize_with_properties({"mean": (Mean, CAUSAL)})
    def test_conformance(check):
        check()
"""
TWO = """
    @parametrize_with_properties({"mean": (Mean, CAUSAL), "leaky": (Leaky, CAUSAL)})
    def test_conformance(check):
        check()
"""
NONE = """
    @parametrize_with_properties({"mean": Mean, "nothing": (Mean, Traits())})
    def test_conformance(check):
        check()
"""
CAUSALITY = ["future-independence", "future-gradient", "prefix-consistency"]


@pytest.fixture
def run(pytester: pytest.Pytester):
    """Run pytest on a file of these tests in an empty folder."""

    def run(tests: str, *arguments: str, given: str = "--biases-max-examples=3") -> pytest.RunResult:
        pytester.makepyfile(test_file=LAYERS + tests)
        chosen = [each for each in (given, *arguments) if each]
        return pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", *chosen)

    return run


@pytest.fixture
def known(pytester: pytest.Pytester):
    def write(text: str) -> str:
        return f"--biases-known-failures={pytester.makefile('.toml', known=text)}"

    return write


def summary_of(result: pytest.RunResult, subject: str) -> str:
    (line,) = [line for line in result.outlines if line.startswith(f"{subject}: ")]
    return line.removeprefix(f"{subject}: ")


def outcomes(result: pytest.RunResult) -> dict[str, int]:
    return {name: count for name, count in result.parseoutcomes().items() if name not in ("deselected", "warnings")}


def test_the_plugin_is_installed_and_light(tmp_path: Path) -> None:
    code = """
import sys
from importlib.metadata import entry_points

(point,) = [each for each in entry_points(group="pytest11") if each.name == "biases"]
point.load()
print(sorted({"torch", "numpy", "biases", "hypothesis"} & set(sys.modules)))
"""
    # From an empty folder: the metadata of a build in this one would come first.
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_header_names_versions_and_what_the_checks_use(pytester: pytest.Pytester) -> None:
    arguments = ["--collect-only", "--biases-profile=thorough", "--biases-seed=3", "--biases-dtype=float32"]
    header = pytester.runpytest_inprocess(*arguments).stdout.str()
    for part in ("biases 0.", "torch 2.", "hypothesis 6.", "device cpu", "dtype float32", "1000 examples (thorough)"):
        assert part in header
    assert "seed 3" in header
    assert "12 examples, seed 0" in pytester.runpytest_inprocess("--biases-max-examples=12").stdout.str()


def test_the_summary_has_a_line_for_each_subject(run) -> None:
    result = run(TWO, "-k", "future or deterministic or permutation-equivariance")
    assert result.ret == 1
    assert summary_of(result, "mean") == "3 ran, 3 passed, 0 failed, 0 xfailed, 1 not applicable"
    assert summary_of(result, "leaky") == "3 ran, 1 passed, 2 failed, 0 xfailed, 1 not applicable"
    assert outcomes(result) == {"passed": 4, "failed": 2, "skipped": 2}


def test_a_subject_of_which_nothing_ran_is_exit_code_3(run) -> None:
    result = run(NONE, "-k", "future-gradient or (mean and deterministic)")
    assert result.ret == 3
    assert summary_of(result, "mean") == "1 ran, 1 passed, 0 failed, 0 xfailed, 1 not applicable"
    assert summary_of(result, "nothing") == "0 ran, 0 passed, 0 failed, 0 xfailed, 1 not applicable; NOTHING RAN"


def test_all_of_it_works_under_xdist(run, known) -> None:
    tests = """
    @parametrize_with_properties({"mean": (Mean, CAUSAL), "leaky": (Leaky, CAUSAL), "nothing": Leaky})
    def test_conformance(check):
        check()
    """
    option = known('[leaky]\nfuture-gradient = "it looks ahead, issue 12"')
    result = run(tests, option, "-n", "2", "-k", "future-gradient or (deterministic and not nothing)")
    assert result.ret == 3
    assert summary_of(result, "mean") == "2 ran, 2 passed, 0 failed, 0 xfailed, 0 not applicable"
    assert summary_of(result, "leaky") == "2 ran, 1 passed, 0 failed, 1 xfailed, 0 not applicable"
    assert summary_of(result, "nothing").endswith("1 not applicable; NOTHING RAN")


def test_a_failure_goes_before_nothing_ran(run) -> None:
    tests = """
    @parametrize_with_properties({"leaky": (Leaky, CAUSAL), "nothing": (Leaky, Traits())})
    def test_conformance(check):
        check()
    """
    assert run(tests, "-k", "future-gradient").ret == 1


def test_a_session_without_subjects_has_no_summary_and_exits_as_ever(run, pytester: pytest.Pytester) -> None:
    result = run("""
    def test_nothing(): pass
    """)
    assert result.ret == 0
    assert "biases: properties" not in result.stdout.str()
    empty = pytester.mkdir("empty")
    assert pytester.runpytest_inprocess(str(empty)).ret == 5


def test_ids_are_the_subject_and_the_property(run) -> None:
    result = run(ONE, "--collect-only")
    assert result.ret == 0
    ids = [line.partition("[")[2].removesuffix("]") for line in result.outlines if "test_conformance[" in line]
    assert ids == [f"mean-{name}" for name, each in PROPERTIES.items() if "layer" in each.kinds]
    assert "properties of attention" not in result.stdout.str()


def test_arguments_of_the_test_file_win_over_options(run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(make_layer, traits, **options):
        seen.append(options)
        return check_attention(make_layer, traits, **options)

    monkeypatch.setattr("biases.testing.parametrize.check_attention", spy)
    tests = """
    @parametrize_with_properties({"mean": (Mean, CAUSAL)}, max_examples=2, seed=7)
    def test_conformance(check):
        check()
    """
    options = ["--biases-seed=1", "--biases-dtype=float32", "--biases-device=cpu", "--biases-slow"]
    assert run(tests, "-k", "deterministic", *options).ret == 0
    (given,) = seen
    assert (given["max_examples"], given["seed"]) == (2, 7)
    assert (given["dtype"], given["device"], given["slow"]) == ("float32", "cpu", True)


@pytest.mark.parametrize(("profile", "examples"), [("quick", 5), ("default", 25), ("thorough", 1000)])
def test_profiles_are_numbers_of_examples(run, monkeypatch, profile: str, examples: int) -> None:
    seen = []

    def spy(make_layer, traits, **options):
        seen.append(options.pop("max_examples"))
        return check_attention(make_layer, traits, max_examples=1, **options)

    monkeypatch.setattr("biases.testing.parametrize.check_attention", spy)
    assert run(ONE, "-k", "deterministic", f"--biases-profile={profile}", "--biases-max-examples=7").ret == 0
    assert seen == [7]
    assert run(ONE, "-k", "deterministic", f"--biases-profile={profile}", given="").ret == 0
    assert seen == [7, examples]


def test_options_stand_for_what_the_test_file_leaves_open(run) -> None:
    result = run(ONE, "-k", "deterministic", "--biases-device=nowhere")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*device: expected a device that torch can use here, got 'nowhere'*"])


def test_slow_properties_are_asked_for(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROPERTIES, "deterministic", replace(PROPERTIES["deterministic"], slow=True))
    result = run(ONE, "-k", "deterministic", "-rs")
    assert result.ret == 3
    result.stdout.fnmatch_lines(["*--biases-slow*"])
    assert outcomes(run(ONE, "-k", "deterministic", "--biases-slow")) == {"passed": 1}


def test_known_failures_of_a_file_are_expected(run, known) -> None:
    reasons = "\n".join(f'{name} = "it looks ahead, issue 12"' for name in CAUSALITY)
    result = run(TWO, known(f"[leaky]\n{reasons}"), "-k", " or ".join(CAUSALITY))
    assert result.ret == 0
    assert summary_of(result, "leaky") == "3 ran, 0 passed, 0 failed, 3 xfailed, 0 not applicable"


@pytest.mark.parametrize(
    ("text", "message", "workers"),
    [
        ('[mean]\nfuture-gradient = "once"', "*expected it to fail, and it passed*", []),
        ('[mean]\npermutation-equivariance = "once"', "*the property does not apply*", []),
        ('[gone]\nfuture-gradient = "once"', "ERROR: *'gone'*expected a subject of the tests ('mean')", []),
        ('[gone]\nfuture-gradient = "once"', "ERROR: *'gone'*expected a subject of the tests ('mean')", ["-n", "1"]),
        ('[mean]\nfuture = "once"', "ERROR: *'mean'*expected the name of a property, got 'future'", []),
    ],
)
def test_stale_known_failures_fail_the_session(run, known, text: str, message: str, workers: list[str]) -> None:
    result = run(ONE, known(text), "-k", "future-gradient or permutation-equivariance", *workers)
    assert result.ret == 1
    result.stdout.fnmatch_lines([message])


def test_known_failures_of_other_files_are_not_stale(run, known) -> None:
    option = known('[gone]\nfuture-gradient = "once"')
    assert run(ONE, option, "-k", "deterministic").ret == 1
    assert run(ONE, option, "-k", "deterministic", "test_file.py").ret == 0


@pytest.mark.parametrize("text", ["no toml", "[mean]\nfuture-gradient = 3", "future-gradient = 'why'"])
def test_an_unreadable_list_of_known_failures_is_bad_usage(run, known, text: str) -> None:
    result = run(ONE, known(text))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --biases-known-failures: *"])


def test_bad_options_are_bad_usage(run) -> None:
    assert run(ONE, "--biases-max-examples=0").ret == pytest.ExitCode.USAGE_ERROR
    assert run(ONE, "--biases-profile=slow").ret == pytest.ExitCode.USAGE_ERROR
    assert run(ONE, "--biases-known-failures=none.toml").ret == pytest.ExitCode.USAGE_ERROR


def test_checks_run_in_plain_tests_too(run) -> None:
    tests = """
    import pytest
    from biases.testing import exit_code

    def test_plain():
        assert exit_code(check_attention(Mean, CAUSAL, properties=["future-gradient"], max_examples=2)) == 0

    @parametrize_with_properties({"leaky": (Leaky, CAUSAL)})
    def test_it_leaks(check, tmp_path):
        assert tmp_path.is_dir()
        with pytest.raises(AssertionError, match="future-gradient: The gradient"):
            check()
    """
    result = run(tests, "-k", "test_plain or future-gradient")
    assert outcomes(result) == {"passed": 2}
    assert summary_of(result, "leaky").startswith("1 ran, 1 passed")


def test_checks_run_without_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(LAYERS + ONE)
    result = pytester.runpytest_inprocess("-p", "no:biases", "-k", "deterministic or permutation-equivariance")
    assert outcomes(result) == {"passed": 1, "skipped": 1}
    assert "examples" not in result.stdout.str()


def test_junit_has_the_subject_the_property_and_the_status(run, pytester: pytest.Pytester) -> None:
    run(ONE, "-k", "deterministic", "--junitxml=results.xml")
    text = (pytester.path / "results.xml").read_text()
    for name, value in (("subject", "mean"), ("property", "deterministic"), ("status", "passed")):
        assert f'<property name="biases_{name}" value="{value}"' in text
