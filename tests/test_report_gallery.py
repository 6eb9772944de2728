"""The gallery's pictures: computed from the zoo, a new variant included, and true to what the variants are."""

from __future__ import annotations

import base64
import io
import itertools
import json

import pytest

pytest.importorskip("plotly", reason="the report extra is not installed")

import torch

from biases import zoo
from biases.backends import RelativeTerm
from biases.decays import alibi_slopes, rmt_log_rates
from biases.registry import VARIANTS, register
from biases.report import gallery, probes
from biases.report.charts import gallery as charts
from biases.report.pictures import SIDE, TOKENS, picture, pictures
from biases.report.thumbnails import thumbnail
from biases.traits import Traits


@pytest.fixture(scope="module")
def drawn() -> dict:
    return {each["name"]: each for each in pictures()}


def test_every_layer_and_position_is_drawn(drawn: dict) -> None:
    assert set(drawn) == {*zoo.names("layer"), *zoo.names("position")}
    assert [name for name, each in drawn.items() if "error" in each] == []
    shown = gallery.view({"zoo": zoo.table(), "gallery": list(drawn.values())})
    names = [row["name"] for _, rows in shown["families"] for row in rows]
    # Nothing is added by no encoding.
    assert sorted(names) == sorted(set(drawn) - {"none"})
    assert len(json.dumps(list(drawn.values()))) < 4_000_000


def test_pictures_leave_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first = picture("ega")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert picture("ega") == first


def test_a_profile_has_the_slopes_of_its_paper(drawn: dict) -> None:
    heads = drawn["alibi"]["profile"]
    for slope, profile in zip(alibi_slopes(len(heads)).tolist(), heads.values(), strict=True):
        weights = torch.tensor(profile["weight"], dtype=torch.float64)
        expected = torch.exp(-slope * torch.tensor(profile["distance"], dtype=torch.float64))
        torch.testing.assert_close(weights, expected)


def test_influence_shows_causality_and_the_leak(drawn: dict) -> None:
    later = [(i, j) for i, j in itertools.product(range(TOKENS), repeat=2) if j > i]
    for name in ("standard", "alibi", "ega-prefix", "retention"):
        assert all(drawn[name]["influence"][i][j] is None for i, j in later), name
    assert all(drawn["ega"]["influence"][i][j] is not None for i, j in later if i)


def test_a_gate_is_a_function_of_its_energy(drawn: dict) -> None:
    for each in drawn["ega"]["response"].values():
        energy, gate = (torch.tensor(each[key], dtype=torch.float64) for key in ("energy", "gate"))
        torch.testing.assert_close(gate, torch.sigmoid(2.0 * energy))


def test_windows_are_regions_and_shifting_makes_more(drawn: dict) -> None:
    plain, shifted = (drawn["swin"]["regions"][which] for which in ("not shifted", "shifted"))
    corners = [(0, 0), (0, SIDE - 1), (SIDE - 1, 0), (SIDE - 1, SIDE - 1)]
    assert len({plain[row][column] for row, column in corners}) == 4
    assert {value for row in plain for value in row} == {plain[row][column] for row, column in corners}
    assert len({value for row in shifted for value in row}) == 9


@pytest.mark.parametrize("name", ["manhattan", "manhattan-decomposed"])
def test_the_weights_of_a_pixel_fall_with_its_manhattan_distance(drawn: dict, name: str) -> None:
    """Queries and keys being alike, both forms have the decay alone, its rows summing to 1."""
    row, column = drawn[name]["query"]
    rates = rmt_log_rates(4)
    pixels = torch.arange(SIDE, dtype=torch.float64)
    distance = (pixels - row).abs()[:, None] + (pixels - column).abs()
    for title, rate in (("head 1", rates[0]), ("head 4", rates[3])):
        expected = torch.softmax((rate * distance).flatten(), 0).view(SIDE, SIDE)
        torch.testing.assert_close(torch.tensor(drawn[name]["maps"][title], dtype=torch.float64), expected)


def test_weights_of_windows_end_where_their_region_does(drawn: dict) -> None:
    for name in ("swin", "gated-swin-retention", "gated-swin-swat"):
        row, column = drawn[name]["query"]
        for shift, regions in drawn[name]["regions"].items():
            inside = torch.tensor(regions) == regions[row][column]
            for head in ("head 1", "head 4"):
                weights = drawn[name]["maps"][f"{head}, {shift}"]
                seen = torch.tensor([[value is not None for value in line] for line in weights])
                assert torch.equal(seen, inside), (name, shift, head)


def test_captions_name_what_the_weights_are_made_of(drawn: dict) -> None:
    """A mask leaves blanks, and nothing but a mask leaves all others of a row alike."""
    for name, each in drawn.items():
        if "left" not in each:
            continue
        lines = [line for rows in each.get("weights", {}).values() for line in rows]
        lines += [list(itertools.chain(*rows)) for rows in each.get("maps", {}).values()]
        assert ("mask" in each["left"]) == any(None in line for line in lines), name
        assert ("gate" in each["left"]) == ("gate" in each), name
        known = [[value for value in line if value is not None] for line in lines]
        alike = all(max(line) - min(line) < 1e-12 for line in known)
        assert alike == (set(each["left"]) <= {"mask"}), name
        # The gate of EGA is no bias, and the decay of RMT no gate.
        declared = zoo.factory(name).traits.decay
        if "gate" not in each["left"] and not alike:
            assert declared is not None or "bias" in each["left"], name
        for title, about, _ in gallery._charts(each):
            if title.startswith("Weights"):
                words = ", ".join(gallery.LEFT[part] for part in each["left"])
                assert about.replace(" and the", ", the").count(f"what is left is {words}") == 1, (name, about)


def test_a_layer_that_is_built_otherwise_has_no_weights_of_pixels() -> None:
    class Windowed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.output = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.output(self.value(x.flatten(1, 2))).view_as(x)

    x = torch.zeros(1, 3, 3, 4)
    assert probes.pixel_weights(Windowed(), x) is None
    assert probes.pixel_weights(torch.nn.Identity(), x) is None


def test_gates_on_values_and_outputs_are_drawn(drawn: dict) -> None:
    elementwise, headwise = (torch.tensor(drawn[name]["gates"]["output"]) for name in ("g1", "g1-headwise"))
    for gate in (elementwise, headwise):
        assert gate.shape[0] == TOKENS
        assert 0.0 < gate.min() < gate.max() < 1.0
    by_head = headwise.view(TOKENS, 4, -1)
    assert torch.equal(by_head, by_head[..., :1].expand_as(by_head))
    values = torch.tensor(drawn["swiglu-value"]["gates"]["values"])
    # The least value of SiLU.
    assert -0.2785 < values.min() < 0.0
    assert [len(rows) for rows in drawn["gated-swin-swat"]["gates"].values()] == [SIDE]


def test_a_kernel_over_lags_is_drawn(drawn: dict) -> None:
    for kernel in drawn["conv-lag-4"]["mixing"].values():
        reached = [lag for lag, weight in zip(kernel["lag"], kernel["weight"], strict=True) if weight]
        assert reached == list(range(-4, 5))
        assert sum(kernel["weight"]) == pytest.approx(1.0)


def test_regions_are_categories() -> None:
    figure = charts.regions([[0.0, 1.0], [2.0, None]])
    (trace,) = figure["data"]
    assert trace["colorbar"]["ticktext"] == ["1", "2", "3"]
    assert [stop for stop, _ in trace["colorscale"]] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])
    assert len({colour for _, colour in trace["colorscale"]}) == 3
    assert (trace["zmin"], trace["zmax"]) == (-0.5, 2.5)


def test_a_published_encoding_dies_out_and_a_rotation_does_not(drawn: dict) -> None:
    def size(name: str, position: int) -> float:
        return sum((value or 0.0) ** 2 for value in drawn[name]["encoding"][position])

    assert size("mope", 30) < 1e-6 * size("mope", 0)
    assert size("rotary", 30) == pytest.approx(size("rotary", 0), rel=1e-5)
    assert size("mope-free", 30) > 0.1 * size("mope-free", 0)


def test_a_new_bias_is_in_the_gallery() -> None:
    class Squared(RelativeTerm):
        def by_distance(self, distance: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            return -0.5 * distance.square().to(dtype)[None]

    @register("toy", family="toys", summary="squared distance", traits=Traits(causal=True), parameters="0")
    def toy(dim: int, heads: int) -> dict[str, object]:
        return {"causal": True, "bias": Squared()}

    try:
        shown = gallery.view({"zoo": zoo.table(), "gallery": [picture("toy")]})
    finally:
        del VARIANTS["toy"]
    ((family, (row,)),) = shown["families"]
    assert (family, row["name"]) == ("toys", "toy")
    assert {"Profile", "Influence"} < {title for title, _, _ in row["charts"]}
    assert row["thumbnail"]


def test_a_variant_that_cannot_be_drawn_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biases.report.pictures.zoo.trial", lambda name: 1 / 0)
    assert picture("ega") == {"name": "ega", "error": "ZeroDivisionError: division by zero"}


def test_thumbnails_are_images() -> None:
    image = pytest.importorskip("PIL.Image")
    address = thumbnail([[0.0, 1.0, None], [0.5, 0.25, 0.75]])
    found = image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,")))).convert("RGBA")
    assert found.size == (3, 2)
    assert found.getpixel((2, 0))[3] == 0
    assert found.getpixel((0, 0)) == (68, 1, 84, 255)
    assert found.getpixel((1, 0)) == (253, 231, 37, 255)
    signed = thumbnail([[-2.0, 0.0, 2.0]], symmetric=True)
    small = image.open(io.BytesIO(base64.b64decode(signed.partition(",")[2]))).convert("RGB")
    scale = charts.heatmap([[-2.0, 0.0, 2.0]], "x", "y", symmetric=True)["data"][0]["colorscale"]
    # As the chart that it stands for: blue is low.
    for place, colour in ((0, scale[0][1]), (2, scale[-1][1])):
        assert small.getpixel((place, 0)) == tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
    red, _, blue = small.getpixel((0, 0))
    assert blue > red
    middle = small.getpixel((1, 0))
    assert max(middle) - min(middle) < 10
