"""The gallery: what each bias looks like, and what it declares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from biases._checks import fail
from biases.report import text
from biases.report.charts import gallery as charts
from biases.report.thumbnails import thumbnail

INITIAL = "with the weights as initialised"
SAMPLE = f"on a random input {INITIAL}"
DERIVATIVE = "Size of the derivative of a random sum of an output's channels by"
FAINT = "Blank: under 10⁻¹³ of it; the colours end at 10⁻⁵."
LEFT = {"mask": "the mask", "bias": "the bias", "decay": "the decay", "gate": "the gate on the keys"}
GATES = {"output": "the result of attention", "values": "the values"}
ELSEWHERE = ("fast_path", "published")
Drawn = tuple[str, str, Any]


def view(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows.

    Args:
        results: ``zoo`` (rows of :func:`biases.zoo.table`) and ``gallery`` (what
            :func:`biases.report.pictures.pictures` returns), each or none.

    Returns:
        ``zoo``, the rows of the table; ``families``: (family, [row with its ``charts``]) of what can be seen.

    Raises:
        ValueError: a value has the wrong type.
    """
    rows = [_row(raw) for raw in text.rows(results, "zoo")]
    by_name = {row["name"]: row for row in rows}
    families: dict[str, list[dict[str, Any]]] = {}
    for raw in text.rows(results, "gallery"):
        name = text.words(raw.get("name"))
        row = by_name.get(name) or _row({"name": name})
        drawn = _charts(raw)
        error = "" if raw.get("error") is None else str(raw["error"])
        if drawn or error:
            of_family = families.setdefault(row["family"], [])
            of_family.append({**row, "charts": drawn, "error": error, "thumbnail": _thumbnail(raw)})
    return {"zoo": rows, "families": list(families.items())}


def _row(raw: Mapping[str, Any]) -> dict[str, Any]:
    paper = text.words(raw.get("paper"))
    traits = raw.get("traits")
    if isinstance(traits, Mapping):
        stated = [(str(k), v) for k, v in traits.items() if k not in ELSEWHERE]
        declared = [(key, value) for key, value in stated if value not in (None, False, [], ())]
        shown = [key if value is True else f"{key}: {_trait(value)}" for key, value in declared]
    else:
        shown = [] if traits is None else [text.words(traits)]
    return {
        **{key: text.words(raw.get(key)) for key in ("name", "kind", "family", "summary", "fast_path")},
        "paper": paper,
        "link": text.arxiv(paper),
        "traits": shown,
    }


def _trait(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(text.words(v) for v in value.values())
    if isinstance(value, list | tuple):
        return ", ".join(text.words(v) for v in value)
    return text.words(value)


def _charts(raw: Mapping[str, Any]) -> list[Drawn]:
    found: list[Drawn] = []
    for head, values in text.section(raw, "weights").items():
        about = f"Attention weights of {head}, each row over its largest, {_alike(raw)}. Blank: exactly 0."
        matrix = _shares(_matrix("weights", values))
        found.append((f"Weights, {head}", about, charts.heatmap(matrix, "key", "query", shares=True)))
    profile = text.section(raw, "profile")
    if profile and _falls(profile):
        about = f"Weights of the last query over that of the key at its own position, by distance, {_alike(raw)}."
        found.append(("Profile", about, _lines(profile, "distance", "weight", "distance", "weight", logarithmic=True)))
    mixing = text.section(raw, "mixing")
    if mixing:
        about = f"What a key weighs in the keys that are mixed from it, by how much later they are, {INITIAL}."
        found.append(("Mixing of keys", about, _lines(mixing, "lag", "weight", "lag", "weight")))
    gate = text.section(raw, "gate")
    if gate:
        values = {h: {"token": list(range(len(v))), "gate": v} for h, v in gate.items()}
        about = f"The gate on the key of every token, {SAMPLE}."
        found.append(("Gate", about, _lines(values, "token", "gate", "token", "gate")))
    response = text.section(raw, "response")
    if response:
        about = f"The gate against the energy that it is a function of, standardised as the layer does, {SAMPLE}."
        found.append(("Gate against energy", about, _lines(response, "energy", "gate", "energy", "gate")))
    return found + _gates(raw) + _encodings(raw) + _influences(raw)


def _alike(raw: Mapping[str, Any]) -> str:
    """How the weights were computed, and what they are made of."""
    left = [LEFT.get(str(each), str(each)) for each in raw.get("left") or []]
    what = f": what is left is {' and '.join(filter(None, (', '.join(left[:-1]), *left[-1:])))}" if left else ""
    return f"{SAMPLE} and every product of query and key set to 1{what}"


def _gates(raw: Mapping[str, Any]) -> list[Drawn]:
    found: list[Drawn] = []
    for which, values in text.section(raw, "gates").items():
        what = GATES.get(which, which)
        if raw.get("query") is None:
            about, axes = f"What multiplies {what} of every token, {SAMPLE}.", ("channel", "token")
        else:
            about, axes = f"What multiplies channel 1 of {what} at every pixel, {SAMPLE}.", ("column", "row")
        found.append((f"Gate on the {which}", about, charts.heatmap(_matrix("gates", values), *axes)))
    return found


def _encodings(raw: Mapping[str, Any]) -> list[Drawn]:
    found: list[Drawn] = []
    if raw.get("encoding") is not None:
        rotated = raw.get("encoded") == "rotary"
        about = "A query or key of ones, rotated as at each position" if rotated else "What each position adds"
        about += f", {INITIAL}: channels across, positions down."
        matrix = _matrix("encoding", raw["encoding"])
        found.append(("Encoding", about, charts.heatmap(matrix, "channel", "position", symmetric=True)))
    if raw.get("similarity") is not None:
        about = "Product of the encodings of two positions, over the mean square of their lengths."
        matrix = _matrix("similarity", raw["similarity"])
        found.append(("Similarity", about, charts.heatmap(matrix, "position", "position", symmetric=True)))
    kernel = text.section(raw, "kernel")
    if kernel:
        about = "The mean of the similarity over all pairs of positions of a distance."
        lines = _lines({"kernel": kernel}, "distance", "similarity", "distance", "similarity")
        found.append(("Kernel", about, lines))
    return found


def _thumbnail(raw: Mapping[str, Any]) -> str:
    """The map that shows most, as an image; empty where there is none."""
    weights = list(text.section(raw, "weights").values())
    if weights and _uneven(raw):
        return thumbnail(_shares(_matrix("weights", weights[0])))
    for values in text.section(raw, "maps").values():
        return thumbnail(_matrix("maps", values))
    for key in ("alone", "influence"):
        if raw.get(key) is not None:
            return thumbnail(_clipped(_logarithms(_matrix(key, raw[key]))))
    if raw.get("encoding") is not None:
        return thumbnail(_matrix("encoding", raw["encoding"]), symmetric=True)
    return ""


def _uneven(raw: Mapping[str, Any]) -> bool:
    """Whether the weights tell more than which keys are seen."""
    return _falls(text.section(raw, "profile")) or bool(text.section(raw, "gate"))


def _clipped(matrix: list[list[float | None]]) -> list[list[float | None]]:
    return [[None if value is None else max(value, -charts.DECADES) for value in row] for row in matrix]


def _influences(raw: Mapping[str, Any]) -> list[Drawn]:
    """Influence of inputs on outputs, for a map on one of its pixels."""
    if raw.get("influence") is None:
        return []
    if raw.get("query") is None:
        matrix = _logarithms(_matrix("influence", raw["influence"]))
        about = f"{DERIVATIVE} an input, over the largest of its row, {SAMPLE}. {FAINT}"
        return [("Influence", about, charts.heatmap(matrix, "input", "output", logarithmic=True))]
    row, column = (int(each or 0) for each in text.numbers("query", raw["query"], 2))
    found: list[Drawn] = []
    for head, values in text.section(raw, "maps").items():
        about = f"Attention weights of the marked pixel for every pixel, {head}, {_alike(raw)}. Blank: exactly 0."
        picture = charts.heatmap(_matrix("maps", values), "column", "row", mark=(row, column))
        found.append((f"Weights, {head}", about, picture))
    beside = f"{SAMPLE} and every product of query and key set to 1: by all parts of the layer, not attention alone"
    for key, title, how in (("alone", "Reach of a pixel", beside), ("influence", "Influence on a pixel", SAMPLE)):
        if raw.get(key) is not None:
            about = f"{DERIVATIVE} every pixel, at the marked pixel, over the largest, {how}. {FAINT}"
            matrix = _logarithms(_matrix(key, raw[key]))
            picture = charts.heatmap(matrix, "column", "row", logarithmic=True, mark=(row, column))
            found.append((title, about, picture))
    for which, regions in text.section(raw, "regions").items():
        about = "Pixels of one region attend to the same pixels."
        title = ", ".join(filter(None, ("Regions", which)))
        found.append((title, about, charts.regions(_matrix("regions", regions))))
    return found


def _matrix(what: str, values: object) -> list[list[float | None]]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        fail(what, "rows of numbers", type(values).__name__)
    first = values[0]
    return [text.numbers(what, row, len(first) if isinstance(first, Sequence) else 0) for row in values]


def _shares(matrix: list[list[float | None]]) -> list[list[float | None]]:
    """Of the largest of each row."""
    largest = [max((abs(value) for value in row if value is not None), default=1.0) for row in matrix]
    return [
        [None if value is None else value / most for value in row] for row, most in zip(matrix, largest, strict=True)
    ]


def _logarithms(matrix: list[list[float | None]]) -> list[list[float | None]]:
    return [[None if not value else math.log10(value) for value in row] for row in matrix]


def _falls(profile: Mapping[str, Any]) -> bool:
    """Whether some weight differs from the nearest one's."""
    weights = [w for each in profile.values() for w in text.numbers("profile", each.get("weight") or [])]
    return any(w is not None and abs(w - 1.0) > 1e-6 for w in weights)


def _lines(values: Mapping[str, Any], across: str, up: str, x: str, y: str, *, logarithmic: bool = False) -> Any:
    series = {}
    for name, each in values.items():
        if not isinstance(each, Mapping):
            fail(name, "a mapping", type(each).__name__)
        xs = text.numbers(across, each.get(across) or [])
        series[text.label(name)] = (xs, text.numbers(up, each.get(up) or [], len(xs)))
    return charts.lines(series, x, y, logarithmic=logarithmic)
