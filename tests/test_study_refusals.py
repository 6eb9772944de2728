"""Studies that are refused, and how: the message names the file and the key."""

import functools
import re

import pytest
from study_files import IMAGES, TEXT, changed, write_study

from biases.ablation import load_study
from biases.ablation.study import check_models


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_study, tmp_path)


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
    ("seeds = 3", "seeds = 0", "seeds: expected their number, up to 10000, or a list of so many different integers"),
    ("seeds = 3", "seeds = 10001", "seeds: expected their number, up to 10000, .*got 10001"),
    ("seeds = 3", f"seeds = {list(range(10_001))}", r"seeds: expected their number, up to 10000, .*got .{1,90}$"),
    ("seeds = 3", f"seeds = [{2**63}]", r"seeds\[0\]: expected an integer of 64 bits, got one of 64 bits"),
    ("seeds = 3", f"seeds = 0x{'f' * 5000}", "seeds: expected an integer of 64 bits, got one of 20000 bits"),
    ("seeds = 3", f"seeds = {'9' * 5000}", "expected TOML, got Exceeds the limit"),
    ("seeds = 3", f"seeds = {'[' * 3000}{']' * 3000}", "expected TOML, got values nested too deeply to be read"),
    ("steps = 20", f"steps = 20\n{'x.' * 3000}y = 1", "expected TOML, got values nested too deeply to be read"),
    ("steps = 20", "steps = 20\nclip = true", r"train.clip: expected a number in \(0, inf\), got True"),
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
    (
        "options.attention.high = 3",
        "options.attention.dim = 8",
        "arms.other.options.attention: expected no 'dim', which the model decides",
    ),
    (
        "options.attention.high = 3",
        "options.position.heads = 8",
        "arms.other.options.position: expected no 'heads', which the model decides",
    ),
    (
        'attention = "ega"\noptions.attention.high = 3',
        'attention = "ega[low=1]"',
        r"arms.other.options.attention: expected no 'low', which 'ega\[low=1\]' has already, got {'low': 1, 'high': 2}",
    ),
    (
        'position = "sinusoidal"',
        'position = "sinusoidal[amplitude=1]"',
        "options.position: expected no 'amplitude', which 'sinusoidal",
    ),
    (
        'attention = "ega"\noptions.attention.high = 3',
        "",
        "contrast 'gate': expected arms of different models, got 'other' and 'plain', the same model",
    ),
    (
        'name = "rate"\na = "other"',
        'name = "rate"\na = "standard+learned"',
        r"contrast 'rate': expected arms of different models, got 'standard\+learned' and 'plain', the same model",
    ),
    (
        'metric = "full"\n',
        'metric = "full"\nlarger_is_better = true\n',
        "statistics.larger_is_better: expected false, the direction of full, got true",
    ),
    (
        "margin = 0.02",
        "margin = 0.02\nlarger_is_better = true",
        "contrast 'gate on prefixes' larger_is_better: expected false, the direction of truncated, got true",
    ),
    ('unit = "1"\n', "", "contrast 'rate' unit: expected the unit of learned.*as the study's is that of full"),
    ("margin = 0.5\n", "", "contrast 'rate' margin: expected a margin in its unit, 1, got none"),
    ("larger_is_better = true", "", "contrast 'rate' larger_is_better: expected true or false, which learned"),
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
            ("options.attention_options", "options.name", "arms.flat.options: expected no 'name'"),
            (
                '[arms.swin]\nname = "swin-digits"',
                '[arms.swin]\nname = "swin-digits[patch=2]"\noptions.patch = 2',
                r"arms.swin.options: expected no 'patch', which 'swin-digits\[patch=2\]' has already",
            ),
            (
                'metric = "test_loss"',
                'metric = "test_loss"\nlarger_is_better = true',
                "statistics.larger_is_better: expected false, the direction of test_loss, got true",
            ),
            (
                "smallest_effect = 0.02",
                'smallest_effect = 0.02\n[[contrasts]]\nname = "c"\na = "swin"\nb = "flat"\nmetric = "test_accuracy"',
                "contrast 'c' unit: expected the unit of test_accuracy, as the study's is that of test_loss, got none",
            ),
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

    def test_a_model_that_takes_no_such_value_is_refused_by_name(self, write, monkeypatch):
        def refuse(*arguments):
            raise TypeError("'<' not supported between 'str' and 'int'")

        monkeypatch.setattr("biases.ablation.training.build_model", refuse)
        with pytest.raises(ValueError, match=r"arm 'plain': expected a model, got TypeError.*'<' not supported"):
            check_models(load_study(write(TEXT)))

    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ("ega", "ega[statistics=window]", True),
            ("ega[statistics=prefix]", 'ega"\noptions.attention.statistics = "prefix', True),
            ("ega[statistics=prefix]", "ega", False),
            ("ega[statistics=prefix]", "standard", False),
            ("no such layer", "no such layer", True),
        ],
    )
    def test_arms_are_compared_with_all_their_options(self, write, one, other, same):
        text = changed(TEXT, "options.attention = {low = 1, high = 2}", "")
        text = changed(text, "[arms.plain]", f'[arms.plain]\nattention = "{one}"')
        path = write(changed(text, 'attention = "ega"\noptions.attention.high = 3', f'attention = "{other}"'))
        if same:
            with pytest.raises(ValueError, match="got 'other' and 'plain', the same model"):
                load_study(path)
        else:
            assert load_study(path).family[0].arms == {"a": "other", "b": "plain"}
