"""The ablations as Markdown, from their analyses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown_tables import escaped, table
from biases.ablation.stats_view import interval, number, probability
from biases.ablation.study import Study
from biases.claims.analyses import PAPER, setting

Analyses = Mapping[str, Mapping[str, Any]]

SHOWN = 4
"""Contrasts of a family that the README shows, the first as declared."""

LEAKS = "gate-sight"
"""The study whose leaks the README shows."""

NAMES = {
    "full": "loss, whole windows",
    "truncated": "loss, prefixes",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
}


def readme_block(studies: Sequence[Study], analyses: Analyses) -> str:
    """The confirmatory contrasts, the leaks, and what has not been run."""
    found = [analyses[study.folder] for study in studies if study.folder in analyses]
    lines: list[str] = []
    if found:
        rows = []
        for analysis in found:
            rows.append([_headline(analysis), "", "", "", "", ""])
            family = [row for row in analysis["contrasts"] if row["family"]]
            for row in family[:SHOWN]:
                cells = [number(row["mean"], sign=True), interval(row["interval"]), str(row["n"])]
                rows.append([_label(row, analysis), *cells, probability(row["p_holm"]), verdict(row)])
        head = ["contrast", "mean", f"{_percent(found[0])} interval", "n", "p (Holm)", "verdict"]
        lines += [*table(head, rows), "", _legend(found), ""]
    leaks = next((each["arms"] for each in found if each["study"] == LEAKS), {})
    told = [f"`{arm}` {interval(of['leak']['interval'])}" for arm, of in leaks.items() if of["leak"]]
    if told:
        lines += [
            f"Loss on prefixes minus loss on whole windows, {_percent(found[0])} interval: {'; '.join(told)}.",
            "",
        ]
    return "\n".join([*lines, _not_run(studies, analyses)])


def _headline(analysis: Mapping[str, Any]) -> str:
    question = " ".join(analysis["question"].split()).partition("?")[0] + "?"
    size = f"`{analysis['study']}`, {analysis['size']}: {setting(analysis)}; in {analysis['statistics']['unit']}"
    return f"**{escaped(question)}** {size}{_incomplete(analysis)}"


def _incomplete(analysis: Mapping[str, Any]) -> str:
    """What of the cells is not there or came to nothing."""
    statuses = [arm["statuses"] for arm in analysis["arms"].values()]
    of, done = (sum(sum(each.values()) for each in statuses), sum(each["ok"] for each in statuses))
    failed = sum(each["failed"] + each["diverged"] for each in statuses)
    told = f"; **incomplete: {done} of {of} cells**" if done < of else ""
    return told + (f", {failed} failed or diverged" if failed else "")


def _legend(found: Sequence[Mapping[str, Any]]) -> str:
    more = [
        f"{analysis['family']['size'] - SHOWN} of {analysis['study']}"
        for analysis in found
        if analysis["family"]["size"] > SHOWN
    ]
    others = f" Of the declared contrasts {', '.join(more)} are only on that page." if more else ""
    return (
        "n: paired seeds. p: exact sign-flip test, adjusted by Holm for all contrasts that the study declared before "
        f"it was run.{others}"
    )


def _not_run(studies: Sequence[Study], analyses: Analyses) -> str:
    missing = [study for study in studies if study.folder not in analyses]
    waiting = [f"`{study.folder}`" for study in missing if study.size != PAPER]
    large = [f"`{study.folder}`" for study in missing if study.size == PAPER]
    told = [f"Not run yet: {', '.join(waiting)}."] if waiting else []
    told += [f"Not run, as they need a GPU: {', '.join(large)}."] if large else []
    return " ".join(told) or "All studies have been run."


def page_block(studies: Sequence[Study], analyses: Analyses) -> str:
    """Every study with its tables and picture, and what has not been run."""
    lines: list[str] = []
    for study in studies:
        if study.folder in analyses:
            lines += [*_section(analyses[study.folder]), ""]
    return "\n".join([*lines, _not_run(studies, analyses)])


def _section(analysis: Mapping[str, Any]) -> list[str]:
    name = f"{analysis['study']}-{analysis['size']}"
    seeds = len(analysis["config"]["seeds"])
    lines = [f"### {analysis['study']}, {analysis['size']}", "", escaped(analysis["question"]), ""]
    lines += [f"Run on {setting(analysis)}, {seeds} seeds{_incomplete(analysis)}.", ""]
    lines += [f"* {escaped(note)}" for note in analysis["notes"]]
    lines += ["", f"![Contrasts of {name}, with intervals](images/{name}.svg)", ""]
    family = [row for row in analysis["contrasts"] if row["family"]]
    others = [row for row in analysis["contrasts"] if not row["family"]]
    if family:
        lines += [*_family(analysis, family), ""]
    if others:
        lines += [*_exploratory(analysis, others), ""]
    return [*lines, *_arms(analysis), "", *_gaps(analysis), _provenance(analysis)]


def _family(analysis: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    percent = _percent(analysis)
    head = ["declared contrast", "mean", f"{percent} interval", f"{percent}, all together", "n", "p", "p (Holm)"]
    head += ["least p (Holm)", "margin", "equivalence p (Holm)", "d_z", "seeds needed", "verdict"]
    cells = []
    for row in rows:
        numbers = [number(row["mean"], sign=True), interval(row["interval"]), interval(row["interval_simultaneous"])]
        keys = ("p_sign_flip", "p_holm", "p_holm_smallest", "margin", "p_equivalence_holm", "effect_size")
        numbers += [str(row["n"]), *(probability(row[key]) for key in keys)]
        needed = "-" if row["required_seeds"] is None else str(row["required_seeds"])
        cells.append([_label(row, analysis), *numbers, needed, verdict(row)])
    return table(head, cells)


def _exploratory(analysis: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["explored, not tested", "mean", f"{_percent(analysis)} interval", "n"]
    cells = (
        [_label(row, analysis), number(row["mean"], sign=True), interval(row["interval"]), str(row["n"])]
        for row in rows
    )
    return table(head, cells)


def _arms(analysis: Mapping[str, Any]) -> list[str]:
    arms, declared = analysis["arms"], analysis["statistics"]["metric"]
    measured = {metric for arm in arms.values() for metric in arm["metrics"]}
    shown = [metric for metric in dict.fromkeys((declared, *NAMES)) if metric in measured]
    leaks = any(arm["leak"] for arm in arms.values())
    head = ["arm", "finished", "parameters", *(f"{NAMES.get(metric, f'`{metric}`')}" for metric in shown)]
    head += ["leak", "over seeds", "of sampling"] if leaks else []
    cells = []
    for name, arm in arms.items():
        parameters = "-" if arm["parameters"] is None else f"{arm['parameters']:,}"
        row = [f"`{name}`", f"{arm['n']} of {sum(arm['statuses'].values())}", parameters]
        row += [_mean(arm["metrics"].get(metric)) for metric in shown]
        leak = arm["leak"] or dict.fromkeys(("mean", "interval", "sampling_interval"))
        told = [number(leak["mean"], sign=True), interval(leak["interval"]), interval(leak["sampling_interval"])]
        cells.append([*row, *told] if leaks else row)
    return table(head, cells)


def _mean(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return "-"
    return number(metric["mean"]) + (f" ({interval(metric['interval'], sign=False)})" if metric["interval"] else "")


def _gaps(analysis: Mapping[str, Any]) -> list[str]:
    """Cells that failed, and arms that were left out."""
    told = [f"* {c['status']}: `{c['arm']}`, seed {c['seed']}: {escaped(c['error'])}" for c in analysis["failed"]]
    told += [f"* left out: `{each['arm']}`: {escaped(each['why'])}" for each in analysis["left_out"]]
    for row in analysis["contrasts"]:
        if row["mixed"]:
            told.append(f"* {escaped(row['name'])}: arms of {row['mixed']} seeds by different code or devices")
    return [*told, ""] if told else []


def _provenance(analysis: Mapping[str, Any]) -> str:
    made = analysis["provenance"]
    revisions = ", ".join(f"{revision[:12]}{'+' * revision.endswith('-dirty')}" for revision in made["git"])
    torch = ", ".join(made["versions"].get("torch", {}))
    began = (made["started"] or ["no day"])[0][:10]
    spent = f"{made['seconds'] / 3600:.1f} hours of training"
    return (
        f"{made['cells']} cells on {', '.join(made['devices'])}, torch {torch}, revision {revisions}, from {began}; "
        f"{spent}. `benchmarks/results/ablations/{analysis['study']}-{analysis['size']}`"
    )


def _label(row: Mapping[str, Any], analysis: Mapping[str, Any]) -> str:
    """The contrast, with its metric and unit where they are not the study's."""
    statistics, own = analysis["statistics"], []
    if row["metric"] != statistics["metric"]:
        own.append(f"`{row['metric']}`")
    if row["unit"] != statistics["unit"]:
        own.append(f"in {row['unit']}")
    return escaped(row["name"]) + (f" ({', '.join(own)})" if own else "")


def verdict(row: Mapping[str, Any]) -> str:
    """The verdict, with the direction in which the metric went."""
    if row["verdict"] not in ("better", "worse"):
        return str(row["verdict"])
    return f"{row['verdict']} ({'higher' if row['mean'] > 0 else 'lower'})"


def _percent(analysis: Mapping[str, Any]) -> str:
    return f"{100 * analysis['statistics']['confidence']:g} %"


def together_table(results: Mapping[str, Any]) -> str:
    """How much faster the seeds of an arm are when they advance together."""
    head = ["model", "seeds", "beside one after another", "beside two processes", "two such processes beside two"]
    rows = []
    for name in results["asked"]:
        found = results["sizes"].get(name)
        if found is None or found["status"] != "ok":
            rows.append([f"`{name}`", "-", *["not measured" if found is None else str(found["status"])] * 3])
            continue
        size = found["size"]
        what = f"`{size['attention']}`, {size['layers']} layers, {size['heads']} heads, width {size['dim']}, "
        what += f"{size['batch']} windows of {size['context']}"
        ways = ("one/together", "two/together", "two/two-together")
        rows.append([what, str(size["seeds"]), *(_gain(found["gains"].get(way)) for way in ways)])
    machine = results["made_by"]
    by = f"{machine['cpu']}, {machine['usable_cores']} cores, torch {machine['torch']}, one thread a process"
    legend = f"Times the speed: medians of interleaved rounds, quartiles in brackets; below 1 is slower. {by}."
    return "\n".join([*table(head, rows), "", legend])


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "-"
    return f"{gain['value']:.2f}" + (
        f" ({gain['low']:.2f}-{gain['high']:.2f})" if gain["rounds"] > 1 else ", one round"
    )
