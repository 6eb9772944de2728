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
from biases.decays import alibi_slopes
from biases.registry import VARIANTS, register
from biases.report import gallery
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
    signed = thumbnail([[-2.0, 0.0, 1.0]], symmetric=True)
    middle = image.open(io.BytesIO(base64.b64decode(signed.partition(",")[2]))).convert("RGB").getpixel((1, 0))
    assert min(middle) > 235
