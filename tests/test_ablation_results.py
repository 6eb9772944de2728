"""The store of results: tables, pairs, and files that are refused."""

import json
import math
from dataclasses import replace

import pytest
from ablation_models import SMALL, build, small_grid

from biases.ablation import load_results, paired_values, run_grid, table


@pytest.fixture
def grid(tmp_path):
    return small_grid(tmp_path)


class TestResults:
    @pytest.fixture
    def run(self, grid, tmp_path):
        run_grid(replace(grid, arms={**grid.arms, "broken": SMALL}), tmp_path, build=build)
        return tmp_path

    def test_tables_and_pairs(self, run):
        results = load_results(run)
        values = table(results, "full")
        assert {arm: sorted(row) for arm, row in values.items()} == {
            "causal": [0, 1],
            "leaky": [0, 1],
            "broken": [],
        }
        seeds, a, b = paired_values(results, "leaky", "causal", "full")
        assert seeds == [0, 1]
        assert a == [values["leaky"][seed] for seed in seeds]
        assert b == [values["causal"][seed] for seed in seeds]
        assert paired_values(results, "causal", "broken", "full") == ([], [], [])

    def test_only_seeds_that_both_finished_are_paired(self, run):
        results = [r for r in load_results(run) if (r["arm"], r["seed"]) != ("leaky", 0)]
        assert paired_values(results, "causal", "leaky", "leak")[0] == [1]

    def test_bad_requests_are_refused(self, run):
        results = load_results(run)
        with pytest.raises(ValueError, match="did you mean 'leak'"):
            table(results, "leek")
        with pytest.raises(ValueError, match="an arm with results, got 'other'"):
            paired_values(results, "causal", "other", "full")
        with pytest.raises(ValueError, match="one finished cell, got another"):
            table([*results, {**results[-1], "status": "ok", "metrics": {"full": 1}}] * 2, "full")
        with pytest.raises(ValueError, match="a run's directory"):
            load_results(run / "nowhere")

    def test_unequal_pairs_are_refused(self, run):
        results = load_results(run)
        changed = [{**r, "data": {"name": "x", "sha256": "0"}} if r["arm"] == "leaky" else r for r in results]
        with pytest.raises(ValueError, match="expected one text"):
            paired_values(changed, "causal", "leaky", "full")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"seed": 7}, "'seed': expected that of its configuration, [01], got 7"),
            ({"arm": "leaky "}, "'arm': expected that of its configuration, '.*', got 'leaky '"),
            ({"config": {"arm": "causal"}}, "'config': configuration: expected the fields of a Cell, got KeyError"),
            ({"config": {"model": {}, "train": {}, "arm": "x", "seed": -1}}, "'config': Cell seed: expected"),
            ({"metrics": {"full": "1.5"}}, "metric 'full': expected a finite number, got '1.5'"),
            ({"metrics": {"full": True}}, "metric 'full': expected a finite number, got True"),
            ({"metrics": {"full": None}}, "metric 'full': expected a finite number, got None"),
            ({"metrics": {"full": math.nan}}, "expected finite numbers, got NaN"),
            ({"curve": [{"step": 1, "validation": -math.inf}]}, "expected finite numbers, got -Infinity"),
        ],
    )
    def test_results_that_contradict_themselves_are_refused(self, run, changes, message):
        path = sorted((run / "cells").glob("*.json"))[2]
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(ValueError, match=message) as caught:
            load_results(run)
        assert str(caught.value).startswith(f"result {path}")

    def test_numbers_beyond_floats_and_configurations_of_other_cells_are_refused(self, run):
        path, other = sorted((run / "cells").glob("*.json"))[:2]
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | {"metrics": {"full": 0}}).replace('"full": 0', '"full": 1e999'))
        with pytest.raises(ValueError, match="metric 'full': expected a finite number, got inf"):
            load_results(run)
        moved = json.loads(other.read_text()) | {"id": path.stem}
        path.write_text(json.dumps(moved))
        with pytest.raises(ValueError, match=f"'id': expected that of its configuration, '{other.stem}', got"):
            load_results(run)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "expected JSON"),
            ("[" * 100_000, "expected JSON, got values nested too deeply to be read"),
            ("[]", "an object with schema 1, got a list"),
            ('{"schema": 2}', "an object with schema 1, got 2"),
            ('{"schema": 1, "id": "damaged"}', "'arm': expected a str, got None"),
        ],
    )
    def test_damaged_files_are_named(self, run, content, message):
        (run / "cells" / ".x.json.1-2.tmp").write_text("half")
        assert len(load_results(run)) == 6
        (run / "cells" / "damaged.json").write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            load_results(run)
        assert "damaged.json" in str(caught.value)
