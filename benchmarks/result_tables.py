"""Tables of single committed results: counted operations, accuracies on the digits, false alarms."""

from __future__ import annotations

from typing import Any

SQUARE_MAPS = (7, 14, 28, 56)
FORMS = ("full", "decomposed", "windowed", "windowed-decomposed")


def cost_table(results: dict[str, Any]) -> str:
    """Counted operations of every form on square maps, a pixel and channel."""
    counted = {(row["form"], row["height"], row["width"]): row for row in results["rows"]}
    window = results["configuration"]["window"]
    lines = [
        f"| operations a pixel and channel, windows of {window} | "
        + " | ".join(f"{side} x {side}" for side in SQUARE_MAPS)
        + " |",
        "|---|" + "---|" * len(SQUARE_MAPS),
    ]
    for form in FORMS:
        cells = (f"{counted[form, side, side]['flops_per_token_and_channel']:,.0f}" for side in SQUARE_MAPS)
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def digits_table(results: dict[str, Any]) -> str:
    """Test accuracies on the digits."""
    train, data = results["train"], results["data"]
    lines = [
        f"| model | parameters | test accuracy, mean of {len(results['seeds'])} seeds | smallest |",
        "|---|---|---|---|",
    ]
    for name, row in results["models"].items():
        mean, least = (f"{100 * row[key]:.1f} %" for key in ("mean_test_accuracy", "smallest_test_accuracy"))
        lines.append(f"| `{name}` | {row['parameters']:,} | {mean} | {least} |")
    device = ", ".join(results["device"])
    return "\n".join(
        [
            *lines,
            "",
            f"{train['steps']} updates of {train['batch']} images; accuracy on all {data['test']} test images after "
            f"the last update, never the best ({device}).",
        ]
    )


def alarms_table(peers: dict[str, Any], zoo: dict[str, Any]) -> str:
    """What many examples and seeds of sound subjects gave."""
    packages = ("torch", "transformers", "timm", "x-transformers")
    used = ", ".join(f"{name} {peers['versions'][name]}" for name in packages)
    lines = ["| subject | properties that passed | examples |", "|---|---|---|"]
    for name, row in peers["subjects"].items():
        lines.append(f"| `{name}` | {len(row['passed'])} | {row['examples']:,} |")
    return "\n".join(
        [
            *lines,
            "",
            f"With {used}. {_counted(peers)}",
            "",
            f"The {len(zoo['subjects'])} layers of the zoo, with random seeds. {_counted(zoo)}",
        ]
    )


def _counted(results: dict[str, Any]) -> str:
    asked, seeds = results["asked"], len(results["asked"]["seeds"])
    return (
        f"{asked['examples']} examples a property, {seeds} seeds, {results['examples']:,} examples in all: "
        f"{len(results['alarms'])} alarms, {len(results['changed_verdicts'])} verdicts that differ between seeds."
    )
