"""Configurations, cells and grids of texts: identity, and what is refused."""

import json
from dataclasses import replace

import pytest
from ablation_models import FAST, LEAKY, SMALL, cell

from biases.ablation import Cell, Grid, ModelConfig, TrainConfig


class TestSpec:
    def test_identity_depends_on_configuration_and_nothing_else(self):
        assert cell().id == cell().id
        assert len(cell().id) == 12
        assert int(cell().id, 16) >= 0
        others = [
            cell(arm="other"),
            cell(seed=1),
            cell(model=LEAKY),
            cell(train=replace(FAST, steps=7)),
            replace(cell(), data="pydoc"),
            cell(model=replace(SMALL, options={"attention": {"scales": 2}})),
        ]
        assert len({c.id for c in [cell(), *others]}) == 7

    def test_equal_numbers_and_mappings_hash_alike(self):
        a = cell(train=replace(FAST, clip=1, betas=[0.9, 0.95]), model=replace(SMALL, options={"attention": {}}))
        assert a == cell()
        assert a.id == cell().id
        options = [{"a": 1, "b": 2}, {"b": 2, "a": 1}]
        ids = {cell(model=replace(SMALL, options={"position": o})).id for o in options}
        assert len(ids) == 1

    def test_configuration_round_trips_through_json(self):
        original = cell(model=replace(SMALL, options={"attention": {"scales": [1, 2]}}))
        again = Cell.from_config(json.loads(json.dumps(original.config)))
        assert again == original
        assert again.id == original.id

    def test_options_are_a_copy(self):
        options = {"attention": {"scales": [1]}}
        config = ModelConfig(options=options)
        options["attention"]["scales"].append(2)
        assert config.options == {"attention": {"scales": [1]}}

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: ModelConfig(dim=10, heads=4), "ModelConfig dim: expected a multiple of heads=4, got 10"),
            (lambda: ModelConfig(dropout=1.0), r"expected a number in \[0, 1\), got 1.0"),
            (lambda: ModelConfig(context=0), "ModelConfig context"),
            (lambda: ModelConfig(attention=""), "ModelConfig attention: expected a name"),
            (lambda: ModelConfig(options={"attntion": {}}), "did you mean 'attention'"),
            (lambda: ModelConfig(options={"model": {"absolute": True}}), "did you mean 'absolute_too'"),
            (lambda: ModelConfig(options={"model": {"absolute_too": 1}}), "expected True or False, got 1"),
            (lambda: ModelConfig(options={"attention": {"f": print}}), "that JSON can hold"),
            (lambda: ModelConfig(options={"attention": {"x": float("inf")}}), "that JSON can hold"),
            (lambda: TrainConfig(steps=100), "fewer updates than steps=100, got 300"),
            (lambda: replace(FAST, steps=True), "TrainConfig steps"),
            (lambda: replace(FAST, learning_rate=0), r"in \(0, inf\), got 0"),
            (lambda: replace(FAST, learning_rate=float("nan")), "TrainConfig learning_rate"),
            (lambda: replace(FAST, betas=(0.9, 1.0)), "TrainConfig betas"),
            (lambda: replace(FAST, betas=0.9), "expected two numbers, got 0.9"),
            (lambda: replace(FAST, clip=0), "TrainConfig clip"),
            (lambda: replace(FAST, schedule="cosin"), "did you mean 'cosine'"),
            (lambda: replace(FAST, evaluation_windows=0), "TrainConfig evaluation_windows"),
            (lambda: replace(FAST, truncated_positions=-1), "TrainConfig truncated_positions"),
            (lambda: cell(seed=-1), "Cell seed: expected an integer of at least 0, got -1"),
            (lambda: cell(seed=2**63), r"Cell seed: expected at most 2\^63 - 1, got 9223372036854775808"),
            (
                lambda: replace(FAST, learning_rate=10**400),
                r"TrainConfig learning_rate: expected a number in \(0, inf\)",
            ),
            (
                lambda: Grid({"a": SMALL}, range(10_001), FAST),
                "Grid seeds: expected at most 10000 seeds, got 10001 seeds",
            ),
            (lambda: ModelConfig(options={"attention": {"dropout": 0}}), "options.attention: expected no 'dropout'"),
            (
                lambda: ModelConfig(attention="ega[low=1]", options={"attention": {"low": 1}}),
                r"options.attention: expected no 'low', which 'ega\[low=1\]' has already",
            ),
            (lambda: cell(model="standard"), "Cell model: expected a ModelConfig, got str"),
            (lambda: Cell.from_config({"arm": "a"}), "expected the fields of a Cell"),
            (lambda: Grid({}, (0,), FAST), "at least one arm"),
            (lambda: Grid({"a": SMALL}, (), FAST), "at least one seed"),
            (lambda: Grid({"a": SMALL}, (1, 1), FAST), "each once"),
            (lambda: Grid({"a": SMALL, "b": replace(SMALL, context=8)}, (0,), FAST), "one context"),
        ],
    )
    def test_bad_values_are_refused(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_cells_come_in_whole_pairs(self):
        grid = Grid({"causal": SMALL, "leaky": LEAKY}, (0, 1), FAST)
        assert [(c.arm, c.seed) for c in grid.cells()] == [
            ("causal", 0),
            ("leaky", 0),
            ("causal", 1),
            ("leaky", 1),
        ]
