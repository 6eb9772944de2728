"""Studies as files: what is read, what is refused and how, which cells they name, the folder of a run."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from biases.ablation import Cell, ImageCell, ImageModelConfig, ImageTrainConfig, ModelConfig, TrainConfig, load_study
from biases.ablation._cells import plain
from biases.ablation.study import Study, check_models
from biases.ablation.study_folder import STUDY_FILE, begin, check_folder

SPECS = sorted((Path(__file__).resolve().parent.parent / "benchmarks" / "ablations").glob("*.toml"))

TEXT = """
schema = 1
name = "tiny"
size = "test"
question = "Does the gate help?"
notes = ["nothing was left out"]
data = "pydoc"
seeds = 3

[model]
layers = 2
dim = 16
heads = 2
context = 16
options.attention = {low = 1, high = 2}

[train]
steps = 20
warmup = 2

[arms.plain]

[arms.other]
attention = "ega"
options.attention.high = 3

[factors]
attention = ["standard", "ega"]
place = ["learned", "scaled"]

[levels.place.learned]

[levels.place.scaled]
position = "sinusoidal"
options.position.amplitude = 0.02

[[left_out]]
arm = "ega+scaled"
why = "not asked"

[statistics]
metric = "full"
unit = "nats per character"
smallest_effect = 0.01

[[contrasts]]
name = "gate"
a = "other"
b = "plain"

[[contrasts]]
name = "gate on prefixes"
a = "other"
b = "plain"
metric = "truncated"
margin = 0.02

[[exploratory]]
name = "rate"
a = "other"
b = "plain"
metric = "learned.blocks.0.attention.key_gate.tau.mean"

[execution]
workers = 2
together = 4
gpus_per_cell = 0.5
"""

IMAGES = """
schema = 1
name = "seen"
size = "test"
question = "Does it see?"
kind = "images"
data = "digits"
seeds = [4, 2]

[model]
name = "rmt-digits"

[arms.decay]

[arms.flat]
options.attention_options = {initial = 30.0, span = 0.0}

[arms.swin]
name = "swin-digits"

[statistics]
metric = "test_loss"
unit = "nats"
smallest_effect = 0.02
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="spec.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def changed(text, old, new):
    assert text.count(old) == 1, old
    return text.replace(old, new)


class TestReading:
    def test_arms_are_those_named_and_the_product_less_what_is_left_out(self, write):
        study = load_study(write(TEXT))
        assert list(study.grid.arms) == ["plain", "other", "standard+learned", "standard+scaled", "ega+learned"]
        base = ModelConfig(layers=2, dim=16, heads=2, context=16, options={"attention": {"low": 1, "high": 2}})
        assert study.grid.arms["plain"] == base
        options = {"attention": {"low": 1, "high": 3}}
        assert study.grid.arms["other"] == replace(base, attention="ega", options=options)
        scaled = {"attention": {"low": 1, "high": 2}, "position": {"amplitude": 0.02}}
        assert study.grid.arms["standard+scaled"] == replace(base, position="sinusoidal", options=scaled)
        assert study.grid.arms["ega+learned"] == replace(base, attention="ega")
        assert [(each.arm, each.why) for each in study.left_out] == [("ega+scaled", "not asked")]

    def test_the_rest_is_as_declared(self, write):
        path = write(TEXT)
        study = load_study(path)
        assert (study.name, study.size, study.kind, study.folder) == ("tiny", "test", "text", "tiny-test")
        assert study.grid.seeds == (0, 1, 2)
        assert study.grid.data == "pydoc"
        assert study.grid.train == TrainConfig(steps=20, warmup=2)
        assert [contrast.name for contrast in study.family] == ["gate", "gate on prefixes"]
        assert study.family[1].metric == "truncated"
        assert study.family[1].margin == 0.02
        assert [contrast.name for contrast in study.exploratory] == ["rate"]
        assert study.statistics.minimum_seeds == 8
        assert study.execution.workers == 2
        assert study.execution.together == 4
        assert study.execution.gpus_per_cell == 0.5
        assert study.source == path.read_text()

    def test_images(self, write):
        grid = load_study(write(IMAGES)).grid
        assert grid.seeds == (4, 2)
        assert grid.train == ImageTrainConfig()
        flat = {"attention_options": {"initial": 30.0, "span": 0.0}}
        assert grid.arms == {
            "decay": ImageModelConfig("rmt-digits"),
            "flat": ImageModelConfig("rmt-digits", flat),
            "swin": ImageModelConfig("swin-digits"),
        }
        assert isinstance(grid.cells()[0], ImageCell)

    def test_numbers_can_be_levels(self, write):
        text = changed(TEXT, 'attention = ["standard", "ega"]', "layers = [1, 3]")
        study = load_study(write(changed(text, 'arm = "ega+scaled"', 'arm = "3+scaled"')))
        assert study.grid.arms["1+learned"].layers == 1
        assert study.grid.arms["3+learned"].layers == 3

    @pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
    def test_committed_studies_can_be_read(self, path):
        study = load_study(path)
        assert path.stem == study.folder
        assert study.family
        assert len(study.grid.seeds) >= study.statistics.minimum_seeds
        if study.size == "small":
            check_models(study)

    def test_there_are_committed_studies(self):
        assert {path.stem.rpartition("-")[0] for path in SPECS} >= {
            "gate-sight",
            "superadditivity",
            "mope-controls",
            "vision",
        }


class TestIdentity:
    """Results that exist are found by these ids: a change here orphans them."""

    def test_ids_of_texts(self):
        model = ModelConfig("standard", "learned", layers=4, heads=4, dim=128, context=128, dropout=0.0)
        train = TrainConfig(
            steps=2000,
            batch=16,
            learning_rate=1e-3,
            warmup=100,
            weight_decay=0.1,
            evaluate_every=500,
            truncated_positions=2048,
        )
        assert Cell("standard", 0, model, train, "tinyshakespeare").id == "d90548afe4e5"
        (path,) = [path for path in SPECS if path.stem == "gate-sight-small"]
        assert load_study(path).grid.cells()[0].id == "d90548afe4e5"

    def test_ids_of_images(self):
        assert ImageCell("a", 0, ImageModelConfig("rmt-digits"), ImageTrainConfig()).id == "7470b5722b82"

    def test_what_was_added_later_counts_only_where_it_is_used(self):
        for config in (TrainConfig(), ImageTrainConfig()):
            assert "precision" not in plain(config)
            assert plain(replace(config, precision="bfloat16"))["precision"] == "bfloat16"
        off = ModelConfig(options={"model": {"absolute_too": False}})
        assert off == ModelConfig()
        assert ModelConfig(options={"model": {"absolute_too": True}}) != ModelConfig()

    def test_results_name_their_cell_again(self, write):
        for text in (TEXT, IMAGES):
            for cell in load_study(write(text)).grid.cells():
                again = Cell.from_config(cell.config)
                assert again == cell
                assert again.id == cell.id


class TestShards:
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_shards_are_disjoint_whole_pairs_and_together_the_grid(self, write, count):
        grid = load_study(write(TEXT)).grid
        shards = [grid.shard(index, count).cells() for index in range(1, count + 1)]
        assert sorted(cell.id for cells in shards for cell in cells) == sorted(cell.id for cell in grid.cells())
        for cells in shards:
            seeds = {cell.seed for cell in cells}
            assert {(cell.arm, cell.seed) for cell in cells} == {(arm, seed) for arm in grid.arms for seed in seeds}

    @pytest.mark.parametrize(("index", "count"), [(0, 2), (3, 2), (1, 0), (True, 2), (1, 4)])
    def test_others_are_refused(self, write, index, count):
        with pytest.raises(ValueError, match="shard: expected"):
            load_study(write(TEXT)).grid.shard(index, count)

    def test_units_are_seeds_of_one_arm_and_hold_every_cell_once(self, write):
        grid = load_study(write(TEXT)).grid
        assert grid.units() == [(cell,) for cell in grid.cells()]
        units = grid.units(2)
        assert [[(cell.arm, cell.seed) for cell in unit] for unit in units[:2]] == [
            [("plain", 0), ("plain", 1)],
            [("other", 0), ("other", 1)],
        ]
        assert sorted(cell.id for unit in units for cell in unit) == sorted(cell.id for cell in grid.cells())
        assert max(map(len, grid.units(8))) == 3


REFUSED = [
    ("schema = 1", "schema = 2", "schema: expected 1, got 2"),
    ("schema = 1", "", "schema: expected 1, got 'nothing'"),
    ("schema = 1", "schema = 1\nseed = 4", "seed: expected one of the keys .*did you mean 'seeds'"),
    ('name = "tiny"', "", "name: expected a text, got nothing"),
    ('name = "tiny"', 'name = "../tiny"', "name: expected letters, digits"),
    ('size = "test"', "size = 3", "size: expected a text, got 3"),
    ('question = "Does the gate help?"', 'question = " "', "question: expected a text, got ' '"),
    ('notes = ["nothing was left out"]', "notes = [1]", r"notes\[0\]: expected a text, got 1"),
    ('data = "pydoc"', "", "data: expected a text, got nothing"),
    ('data = "pydoc"', 'data = "pydoc"\nkind = "sounds"', "kind: expected one of 'text', 'images', got 'sounds'"),
    ("seeds = 3", "seeds = 0", "seeds: expected their number, or a list of different integers"),
    ("seeds = 3", "seeds = [1, 1]", r"seeds: expected .*got \[1, 1\]"),
    ("seeds = 3", "seeds = true", "seeds: expected .*got True"),
    ("seeds = 3", "seeds = [-1]", r"seeds: expected .*got \[-1\]"),
    ("seeds = 3", "", "seeds: expected .*got 'nothing'"),
    ("layers = 2", "layer = 2", "model.layer: expected one of the keys .*did you mean 'layers'"),
    ("layers = 2", "layers = 0", "arms.plain.layers: expected an integer of at least 1, got 0"),
    ("dim = 16", "dim = 15", "arms.plain.dim: expected a multiple of heads=2, got 15"),
    ("steps = 20", "stpes = 20", "train.stpes: expected one of the keys .*did you mean 'steps'"),
    ("steps = 20", "steps = 2", "train.warmup: expected fewer updates than steps=2, got 2"),
    ("steps = 20", 'precision = "half"', "train.precision: expected one of 'float32', 'bfloat16'"),
    ("[train]", "[[train]]", "train: expected a table"),
    ("[arms.plain]", "[arms]\nplain = 3", "arms.plain: expected a table, got 3"),
    ("options.attention.high = 3", "option.high = 3", "arms.other.option: expected one of the keys"),
    ("options.attention.high = 3", "options.attntion.high = 3", "arms.other.options: .*did you mean 'attention'"),
    ("options.attention.high = 3", "options.model.absolute = true", "arms.other.options.*'absolute_too'"),
    ("options.attention.high = 3", "context = 8", "arms: Grid arms: expected one context for all"),
    ("[arms.other]", '[arms."ega+learned"]', r"arms.ega\+learned: expected another name"),
    ('attention = ["standard", "ega"]', "attention = []", "factors.attention: expected at least one level"),
    ('attention = ["standard", "ega"]', 'attention = "ega"', "factors.attention: expected a list of levels"),
    ('"scaled"]', '"scaled", "none"]', r"factors.place\[2\]: expected a level declared as \[levels.place.NAME\]"),
    ('"scaled"]', '"learned"]', "levels.place.scaled: expected one of the keys learned, learned"),
    ("[levels.place.scaled]", '[levels.place.scaled]\nattention = "ega"', "one value of attention"),
    ("[levels.place.scaled]", "[levels.place.scaled]\nlayer = 3", r"arm 'standard\+scaled'.layer: expected"),
    ("[levels.place.learned]", "[levels.plaice.learned]", "levels.plaice: expected .*did you mean 'place'"),
    ('arm = "ega+scaled"', 'arm = "ega"', r"left_out\[0\].arm: expected an arm of the factors, once"),
    ('why = "not asked"', "", r"left_out\[0\].why: expected a text, got nothing"),
    ("smallest_effect = 0.01", "", "statistics: expected every key that is required, .*'smallest_effect'"),
    ("smallest_effect = 0.01", "smallest_effect = 0", r"statistics.smallest_effect: expected a number in \(0, inf\)"),
    ("smallest_effect = 0.01", "smallest_efect = 1", "statistics.smallest_efect: .*did you mean 'smallest_effect'"),
    ('metric = "full"', 'metric = "ful"', "statistics metric: expected one of .*did you mean 'full'"),
    ('metric = "truncated"', 'metric = "learned.tau.median"', "'gate on prefixes' metric: expected learned.NAME.mean"),
    ("steps = 20", "steps = 20\ntruncated_positions = 0", "metric: expected one of 'full', 'train', got 'truncated'"),
    ('name = "rate"', 'name = "gate"', "contrast 'gate': expected a name that no other contrast has"),
    ('name = "rate"\na = "other"', 'name = "rate"\na = "othr"', "contrast 'rate' a: .*did you mean 'other'"),
    (
        'name = "rate"\na = "other"',
        'name = "rate"\na = "ega+scaled"',
        r"exploratory\[0\].a: expected an arm that is run, got 'ega\+scaled', left out: not asked",
    ),
    ("margin = 0.02", "margin = -1", r"contrasts\[1\].margin: expected a number in \(0, inf\), got -1"),
    ("margin = 0.02", "margins = 1", r"contrasts\[1\].margins: .*did you mean 'margin'"),
    ("workers = 2", "workers = 0", "execution.workers: expected an integer of at least 1, got 0"),
    ("workers = 2", "worker = 2", "execution.worker: .*did you mean 'workers'"),
    ("gpus_per_cell = 0.5", "gpus_per_cell = -1", "execution.gpus_per_cell: expected a number"),
    ("schema = 1", "schema = ", "expected TOML, got .*line 2"),
]


class TestRefusals:
    @pytest.mark.parametrize(("old", "new", "message"), REFUSED, ids=[f"{new or old}"[:40] for old, new, _ in REFUSED])
    def test_the_message_names_file_and_key(self, write, old, new, message):
        path = write(changed(TEXT, old, new))
        with pytest.raises(ValueError, match=message) as caught:
            load_study(path)
        assert str(caught.value).startswith(f"{path}: ")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('name = "rmt-digits"', "", "arms.decay: expected every key that is required, got .*'name'"),
            ("options.attention_options", "options.classes", "arms.flat.options: expected no 'classes'"),
            ('metric = "test_loss"', 'metric = "full"', "statistics metric: expected one of 'test_accuracy'"),
            ("seeds = [4, 2]", "seeds = 2\nexecution = {together = 2}", "execution.together: expected 1 for images"),
        ],
    )
    def test_of_images(self, write, old, new, message):
        with pytest.raises(ValueError, match=message):
            load_study(write(changed(IMAGES, old, new)))

    def test_no_file_no_text_no_arms(self, tmp_path, write):
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'none.toml'}: expected a study's TOML file")):
            load_study(tmp_path / "none.toml")
        path = tmp_path / "latin.toml"
        path.write_bytes('name = "é"'.encode("latin-1"))
        with pytest.raises(ValueError, match=r"latin.toml: expected TOML, got 'utf-8'"):
            load_study(path)
        text = IMAGES[: IMAGES.index("[arms.decay]")] + IMAGES[IMAGES.index("[statistics]") :]
        with pytest.raises(ValueError, match="arms: expected at least one arm"):
            load_study(write(text))

    @pytest.mark.parametrize(
        ("text", "old", "new", "message"),
        [
            (TEXT, "options.attention = {low = 1, high = 2}", "", None),
            (TEXT, "options.attention = {low = 1, high = 2}", "options.attention = {lags = 1}", "arm 'plain'.*lags"),
            (IMAGES, 'name = "swin-digits"', 'name = "swin-digit"', "arm 'swin'.*did you mean 'swin-digits'"),
            (IMAGES, 'name = "swin-digits"', 'name = "manhattan"', "arm 'swin'.*expected a model, got a layer"),
        ],
    )
    def test_models_are_tried_before_anything_is_run(self, write, text, old, new, message):
        text = text.replace("options.attention.high = 3\n", "")
        study = load_study(write(changed(text, old, new)))
        if message is None:
            check_models(study)
            return
        with pytest.raises(ValueError, match=message) as caught:
            check_models(study)
        assert str(caught.value).startswith(f"{study.file}: ")


class TestFolder:
    @pytest.fixture
    def begun(self, write, tmp_path):
        """A folder with a cell in it."""
        out = tmp_path / "out"
        assert begin(load_study(write(TEXT)), out) is None
        (out / "cells").mkdir()
        (out / "cells" / "0.json").write_text("{}")
        return out

    def test_the_study_is_written_as_it_is(self, begun):
        assert (begun / STUDY_FILE).read_text() == TEXT
        study = load_study(begun / STUDY_FILE)
        assert isinstance(study, Study)
        assert tomllib.loads(study.source)["seeds"] == 3

    @pytest.mark.parametrize(
        ("old", "new", "part"),
        [
            ("steps = 20", "steps = 21", "train"),
            ('data = "pydoc"', 'data = "tinyshakespeare"', "data"),
            ("layers = 2", "layers = 3", "arm 'plain'"),
            ('name = "tiny"', 'name = "small"', "name"),
            ("[arms.plain]", '[arms.plain]\n\n[arms.more]\nposition = "none"', "arm 'more'"),
        ],
    )
    def test_another_study_is_refused(self, begun, write, old, new, part):
        other = load_study(write(changed(TEXT, old, new), "other.toml"))
        with pytest.raises(ValueError, match=rf"other.toml: {part} in .*give another --out"):
            begin(other, begun)
        assert (begun / STUDY_FILE).read_text() == TEXT

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            ("seeds = 3", "seeds = 8", False),
            ("workers = 2", "workers = 1", False),
            ("nothing was left out", "something was", False),
            ("margin = 0.02", "margin = 0.03", True),
            ("smallest_effect = 0.01", "smallest_effect = 0.02", True),
        ],
    )
    def test_what_cells_do_not_depend_on_may_change_but_the_declaration_is_kept(self, begun, write, old, new, told):
        text = changed(TEXT, old, new)
        note = begin(load_study(write(text)), begun)
        assert (note is not None) is told
        assert (begun / STUDY_FILE).read_text() == text
        (kept,) = begun.glob("study-*.toml")
        assert kept.read_text() == TEXT
        if told:
            assert str(kept) in note

    def test_a_folder_without_cells_may_be_begun_anew(self, begun, write):
        (begun / "cells" / "0.json").unlink()
        other = changed(TEXT, "steps = 20", "steps = 21")
        study = load_study(write(other))
        assert check_folder(study, begun) is None
        assert begin(study, begun) is None
        assert (begun / STUDY_FILE).read_text() == other
