"""The benchmark section of `biases report`, on documents as the commands write them."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="the report extra is not installed")

from report_pages import Page

from biases import cli
from biases.bench import Ceilings
from biases.report import bench, history, measurements, render, text
from biases.report.asv_history import steps
from biases.report.charts import ticks

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
SMALL = ["--length", "16", "32", "--heads", "2", "--head-dim", "8", "--direction", "forward", "--rounds", "3"]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `biases bench` writes of a causal layer and of one that is not, at two lengths."""
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("biases.bench.run.ceilings", lambda *_: Ceilings(1e9, 1e9, 8, 8, "float32", "float32"))
        assert cli.main(["bench", "alibi", "alibi-symmetric", *SMALL, "--out", str(out)]) == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def pieces() -> dict[str, Any]:
    return json.loads((RESULTS / "ratios_cpu.json").read_text())


def with_floors(document: dict[str, Any], floors: dict[tuple[str, int], float]) -> dict[str, Any]:
    """The document with these times of the floors, and every case at 0.9 of its own."""
    changed = copy.deepcopy(document)
    for row in changed["rows"]:
        floor = floors[row["name"], row["setting"]["length"]]
        for key, middle in (("floor", floor), ("samples", 0.9 * floor)):
            row[key] |= {"median": middle, "low": 0.98 * middle, "high": 1.02 * middle}
        row["ratio"] |= {"value": 0.9, "low": 0.89, "high": 0.91}
    return changed


def charts(part: dict[str, Any], group: int = 0) -> dict[str, tuple[str, dict[str, Any]]]:
    """Title -> (description, figure)."""
    rows = bench.view(part)["groups"][group]["charts"]
    return {title: (about, figure) for row in rows for title, about, figure in row}


def named(figure: dict[str, Any], start: str) -> dict[str, Any]:
    return {trace["name"]: trace["y"] for trace in figure["data"] if trace["name"].startswith(start)}


def test_the_mask_of_a_benchmark_is_in_its_file_and_table(document: dict[str, Any]) -> None:
    masks = {row["name"]: row["causal"] for row in document["rows"]}
    assert masks == {"alibi": True, "alibi-symmetric": False}
    shown = bench.view(measurements.of_bench(document))
    assert {(row["name"], row["mask"]) for row in shown["rows"]} == {("alibi", "causal"), ("alibi-symmetric", "full")}
    assert shown["columns"]["mask"]


def test_the_committed_ratios_say_a_mask_only_where_the_name_does(pieces: dict[str, Any]) -> None:
    shown = bench.view(measurements.of_pieces(pieces))
    masks = {row["name"]: row["mask"] for row in shown["rows"]}
    assert masks["decay, causal"] == masks["EGA, causal (ega), plain formulas"] == "causal"
    assert {masks[name] for name in masks if "causal" not in name} == {text.DASH}


def test_each_mask_has_its_own_floor(document: dict[str, Any]) -> None:
    floors = {("alibi", 16): 1e-3, ("alibi", 32): 2e-3, ("alibi-symmetric", 16): 2e-3, ("alibi-symmetric", 32): 4e-3}
    found = charts(measurements.of_bench(with_floors(document, floors)))
    about, latency = found["Latency against length"]
    assert named(latency, "floor") == {"floor, causal": [1e-3, 2e-3], "floor, full": [2e-3, 4e-3]}
    assert "one for each mask" in about
    for name in ("alibi", "alibi-symmetric"):
        mask = "causal" if name == "alibi" else "full"
        pairs = zip(named(latency, name)[name], named(latency, "floor")[f"floor, {mask}"], strict=True)
        assert [ours / floor for ours, floor in pairs] == pytest.approx([0.9, 0.9])
    _, ratio = found["Ratio to the floor against length"]
    assert [trace["y"] for trace in ratio["data"]] == [[0.9, 0.9]] * 2


def test_floors_that_differ_within_a_mask_have_no_line(document: dict[str, Any]) -> None:
    floors = {("alibi", 16): 1e-3, ("alibi", 32): 2e-3, ("alibi-symmetric", 16): 2e-3, ("alibi-symmetric", 32): 4e-3}
    found = with_floors(document, floors)
    for row in found["rows"]:
        row["causal"] = True
    about, latency = charts(measurements.of_bench(found))["Latency against length"]
    assert named(latency, "floor") == {}
    assert "differs by subject beyond its quartiles" in about
    assert "ratio against length" in about


def test_floors_that_agree_within_their_quartiles_have_one_line(document: dict[str, Any]) -> None:
    floors = {("alibi", 16): 1e-3, ("alibi", 32): 2e-3, ("alibi-symmetric", 16): 1.02e-3, ("alibi-symmetric", 32): 2e-3}
    found = charts(measurements.of_bench(with_floors(document, floors)))
    about, latency = found["Latency against length"]
    # Of two values the median is their mean.
    assert named(latency, "floor")["floor"] == pytest.approx([1.01e-3, 2e-3])
    assert "The dotted line is the floor" in about
    memory = found["Peak memory against length"][1]
    expected = [row["floor_peak_bytes"] for row in document["rows"] if row["name"] == "alibi"]
    assert named(memory, "floor") == {"floor": expected}


def test_the_floors_of_the_committed_times_differ_and_those_of_memory_agree(pieces: dict[str, Any]) -> None:
    found = charts(measurements.of_pieces(pieces))
    for title in ("Latency against length", "Throughput against length"):
        assert named(found[title][1], "floor") == {}
        assert "differs by subject" in found[title][0]
    memory = found["Peak memory without results against length"][1]
    assert named(memory, "floor") == {"floor": [1216512, 1314816]}
    _, ratio = found["Ratio to the floor against length"]
    expected = [pieces["pieces"][f"decay, causal/{length}/forward"]["ratio"]["value"] for length in (1024, 4096)]
    assert named(ratio, "decay, causal") == {"decay, causal": expected}


def test_ticks_of_ratios_have_their_sign(pieces: dict[str, Any]) -> None:
    by_case, over_lengths = (
        charts(measurements.of_pieces(pieces))[title][1]["layout"][axis]
        for title, axis in (("Time against the floor", "xaxis"), ("Ratio to the floor against length", "yaxis"))
    )
    assert (by_case["ticktext"], by_case["tickvals"]) == (["×0.1", "×1", "×10"], [0.1, 1.0, 10.0])
    assert all(word.startswith("×") for word in over_lengths["ticktext"])
    demo = charts(json.loads((RESULTS / "demo.json").read_text())["bench"])
    assert demo["Time against the floor"][1]["layout"]["xaxis"]["ticktext"] == ["×0.3", "×1", "×3", "×10"]


@pytest.mark.parametrize("binary", [False, True])
def test_ticks_are_few_and_round(binary: bool) -> None:
    draw = random.Random(0)
    for _ in range(500):
        low = 10 ** draw.uniform(-6, 9)
        high = low * 10 ** draw.choice([draw.uniform(0.01, 0.1), draw.uniform(0.1, 9)])
        found = ticks.logarithmic([low, high], text.number, binary=binary)["tickvals"]
        assert ticks.FEWEST <= len(found) <= 2 * ticks.MOST
        beyond = 1.01 * (high / low) ** 0.04
        assert all(low / beyond <= value <= high * beyond for value in found)


def test_values_on_axes_are_round_and_in_units(pieces: dict[str, Any]) -> None:
    found = charts(measurements.of_pieces(pieces))
    for title, words in (
        ("Latency against length", {"10 ms", "20 ms", "50 ms", "100 ms"}),
        ("Throughput against length", {"60k", "100k"}),
        ("Peak memory without results against length", {"512 KiB", "1 MiB", "2 MiB"}),
    ):
        assert words <= set(found[title][1]["layout"]["yaxis"]["ticktext"])


def test_large_numbers_have_no_exponent() -> None:
    assert [text.count(v) for v in (9.0, 999.4, 999.7, 18_320, 825_600, 4.2e7, 3.7e9, None)] == [
        "9", "999", "1k", "18.3k", "826k", "42M", "3.7G", "–",
    ]  # fmt: skip
    assert text.size(1010 * 1024) == "1010 KiB"
    assert [text.duration(v) for v in (999.7e-6, 0.9997)] == ["1 ms", "1 s"]
    assert text.ratio(1234.0) == "×1234"


def test_ratios_are_dots_and_memory_is_told_beyond_the_floor(document: dict[str, Any]) -> None:
    single = copy.deepcopy(document)
    single["rows"] = [row for row in single["rows"] if row["setting"]["length"] == 16]
    single["rows"][0]["floor_peak_bytes"] = 8 * single["rows"][0]["peak_bytes"]
    found = charts(measurements.of_bench(single))
    about, ratio = found["Time against the floor"]
    assert [(trace["type"], trace["mode"]) for trace in ratio["data"]] == [("scatter", "markers")]
    assert "shorter" not in about
    bar, floor, told = found["Peak memory"][1]["data"]
    assert (bar["type"], floor["marker"]["symbol"], told["mode"]) == ("bar", "line-ns", "text")
    assert told["x"] == [max(pair) for pair in zip(bar["x"], floor["x"], strict=True)]
    assert told["x"][0] == floor["x"][0] > bar["x"][0]
    assert told["text"][0].strip() == text.size(bar["x"][0])


def test_the_two_memories_are_named_apart(document: dict[str, Any], pieces: dict[str, Any]) -> None:
    both = bench.view(measurements.of_bench(document))["columns"]["memories"]
    assert both == [("peak_bytes", "Peak memory"), ("extra_bytes", "Peak memory without results")]
    shown = bench.view(measurements.of_pieces(pieces))
    assert shown["columns"]["memories"] == both[1:]
    assert shown["rows"][0]["memories"]["extra_bytes"] == (text.size(2295552), text.size(1216512))
    row = document["rows"][0]
    cells = bench.view(measurements.of_bench(document))["rows"][0]["memories"]
    assert [cells[key][0] for key, _ in both] == [text.size(row[key]) for key, _ in both]


def test_an_interrupted_benchmark_says_so(document: dict[str, Any], pieces: dict[str, Any]) -> None:
    stopped = copy.deepcopy(document) | {"complete": False}
    stopped["rows"] = stopped["rows"][:3]
    said = "This benchmark was stopped before its end: 3 of 4 workloads were measured, missing of alibi-symmetric."
    page = Page(render({"bench": measurements.of_bench(stopped)})).text()
    assert page.count(said) == 2
    assert "stopped before its end" not in Page(render({"bench": measurements.of_bench(document)})).text()
    left = pieces | {"pieces": dict(list(pieces["pieces"].items())[1:])}
    assert measurements.of_pieces(pieces)["remarks"] == []
    (remark,) = measurements.of_pieces(left)["remarks"]
    assert remark.endswith("1 of 60 pieces are missing, gate, not renormalised/1024/forward.")


def test_another_schema_is_told(document: dict[str, Any]) -> None:
    assert measurements.of_bench(document)["remarks"] == []
    (remark,) = measurements.of_bench(document | {"schema": 99})["remarks"]
    assert "schema 99" in remark


def test_two_rows_of_one_name_and_length_are_both_drawn(document: dict[str, Any]) -> None:
    twice = copy.deepcopy(document)
    twice["rows"] += [copy.deepcopy(row) for row in twice["rows"] if row["name"] == "alibi"]
    other = copy.deepcopy(next(row for row in twice["rows"] if row["name"] == "alibi"))
    twice["rows"].append(other | {"causal": False})
    found = charts(measurements.of_bench(twice))
    (ratio, *_), (_, latency) = (found["Time against the floor"][1]["data"], found["Latency against length"])
    assert len(set(ratio["y"])) == len(ratio["y"]) == 4
    assert ratio["y"] == ["alibi, causal", "alibi-symmetric", "alibi, causal (2)", "alibi, full"]
    assert {"alibi, causal", "alibi, causal (2)"} <= {trace["name"] for trace in latency["data"]}


def test_the_table_is_grouped_and_shows_what_is_wrong_first(document: dict[str, Any]) -> None:
    wrong = copy.deepcopy(document)
    wrong["rows"][0] |= {"status": "error", "message": "RuntimeError: no memory"}
    heads = [" ".join(page_head) for page_head in _heads({"bench": measurements.of_bench(wrong)})]
    assert heads[:3] == ["Case", "Status", "Mask"]
    assert "Status" not in [" ".join(head) for head in _heads({"bench": measurements.of_bench(document)})]
    page = Page(render({"bench": measurements.of_bench(wrong)}))
    assert len([th for th in page.all("th") if th.get("scope") == "rowgroup"]) == 1
    assert "RuntimeError: no memory" in page.text()


def _heads(results: dict[str, Any]) -> list[list[str]]:
    html = render(results)
    head = html[html.index("<thead>") : html.index("</thead>")]
    return [cell.partition(">")[2].partition("<")[0].split() for cell in head.split("<th")[2:]]


def test_headings_name_what_was_measured_on_which_device(document: dict[str, Any]) -> None:
    part = measurements.of_bench(document) | {"file": "/somewhere/bench.json"}
    assert bench.view(part)["heading"] == "Operators on cpu, float32 (bench.json)"
    demo = json.loads((RESULTS / "demo.json").read_text())["bench"]
    shown = bench.view(demo)
    assert shown["heading"] == "Measurements on cpu, float32 (bench.json)"
    headings = [group["heading"] for group in shown["groups"]]
    assert headings == ["cpu, float32, forward", "cpu, float32, forward+backward"]


def test_measures_below_zero_are_refused(document: dict[str, Any]) -> None:
    wrong = copy.deepcopy(document)
    wrong["rows"][0]["samples"]["median"] = -1.0
    with pytest.raises(ValueError, match="seconds_median of a benchmark: expected 0 or more, got -1"):
        bench.view(measurements.of_bench(wrong))


def test_short_series_have_no_steps() -> None:
    assert steps([1.0, 1.01], unit="seconds") == []
    assert steps([1.0] * 3 + [2.0] * 4, unit="bytes") == []
    assert [step["at"] for step in steps([1.0] * 4 + [2.0] * 4, unit="bytes")] == [4]


def test_noise_has_no_steps() -> None:
    draw = random.Random(0)
    series = [[1 + draw.gauss(0, 0.05) for _ in range(length)] for length in range(2, 24) for _ in range(10)]
    assert sum(bool(steps(values, unit="seconds")) for values in series) <= 2


def test_an_outlier_is_no_step_and_small_steps_of_times_are_none() -> None:
    once = [1.0, 1.001, 0.999] * 4 + [1.8] + [1.0, 1.001, 0.999] * 2
    assert steps(once, unit="seconds") == []
    small = [1.0] * 8 + [1.04] * 8
    assert steps(small, unit="seconds") == []
    (step,) = steps(small, unit="operations")
    assert step == {"at": 8, "before": 1.0, "after": 1.04, "ratio": 1.04}
    (new,) = steps([0.0] * 8 + [2.0] * 8, unit="breaks")
    assert (new["ratio"], new["after"]) == (None, 2.0)


def test_steps_are_told_in_words_the_largest_first() -> None:
    days = [{"hash": f"{i:08x}", "date": 1.7e12 + 1e8 * i} for i in range(16)]

    def series(name: str, unit: str, before: float, after: float) -> dict[str, Any]:
        values = [before] * 8 + [after] * 8
        found = {"benchmark": name, "params": "alibi", "unit": unit, "values": values}
        return found | {"steps": steps(values, unit=unit)}

    shown = history.view(
        {
            "machine": "box",
            "commits": days,
            "series": [
                series("layers.Counts.track_operations", "operations", 100.0, 99.0),
                series("layers.Cpu.time_call", "seconds", 1.0, 1.5),
                series("layers.Compiled.track_graph_breaks", "breaks", 0.0, 2.0),
                series("layers.Cpu.time_setup", "seconds", 2.0, 1.5),
            ],
        }
    )
    assert history.findings(shown) == [
        "History on box: 4 series over 16 commits, 4 with steps; the 3 largest follow, the table has all.",
        "layers: graph breaks (Compiled), alibi: 2 breaks instead of none from 00000008 of 2023-11-24 on.",
        "layers: time of call (Cpu), alibi: 50 % slower from 00000008 of 2023-11-24 on.",
        "layers: time of setup (Cpu), alibi: 25 % faster from 00000008 of 2023-11-24 on.",
    ]
    assert [group["name"] for group in shown["groups"]][-1] == "layers.Counts.track_operations"
    assert shown["groups"][-1]["series"][0]["stepped"].startswith("1 % fewer operations from")


def test_few_commits_say_that_no_steps_are_looked_for() -> None:
    values = [1.0, 1.01]
    series = {"benchmark": "a.time_call", "params": "ega", "unit": "seconds", "values": values, "steps": steps(values)}
    part = {"machine": "box", "commits": [{"hash": "a"}, {"hash": "b"}], "series": [series]}
    page = Page(render({"history": part})).text()
    assert "Steps are looked for from 8 values on: in fewer, asv's detection finds them in noise." in page
    assert "A diamond marks" not in page
    assert "1 series over 2 commits; steps are looked for from 8 values on." in page
