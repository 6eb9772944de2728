"""The console script ``biases``: a thin face over the package.

Exit codes: 0 all is well, 1 something failed, 2 bad usage or bad input, 3 nothing was checked, measured or done,
130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import biases
from biases._exit_codes import FAILED, INTERRUPTED, NOTHING, OK, USAGE
from biases.ablation.command import add_arguments as add_ablate_arguments
from biases.ablation.progress import say, unread
from biases.ablation.stats_command import add_arguments as add_stats_arguments
from biases.bench.command import add_arguments as add_bench_arguments
from biases.bench.compare.command import add_arguments as add_compare_arguments
from biases.bench.compare.command import add_reports as add_compare_reports
from biases.bench.compare.command import add_revisions
from biases.bench.profile.command import add_arguments as add_profile_arguments
from biases.checking.command import add_arguments as add_check_arguments
from biases.checking.command import add_reports as add_check_reports
from biases.ci.command import add_arguments as add_ci_arguments
from biases.claims.command import add_arguments as add_claims_arguments
from biases.report.command import add_arguments as add_report_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        return _run(_parser().parse_args(arguments))
    except KeyboardInterrupt:
        say("biases: interrupted")
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except ValueError as error:
        say(f"biases: {error}")
        return USAGE
    except BrokenPipeError:
        # The reader of a pipe has enough, as `head` has.
        unread(sys.stdout)
        return OK
    except OSError as error:
        say(f"biases: {error}")
        return FAILED
    except ModuleNotFoundError as error:
        extra = f"pip install 'attention-biases[{options.extra}]'"
        say(f"biases: {error}; `biases {options.command}` needs more packages: {extra}")
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="biases", description=biases.__doc__)
    parser.add_argument("--version", action="version", version=f"biases {biases.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    listing = _command(commands, "list", list_zoo, "show the zoo", "biases list ega", extra="check")
    listing.add_argument("name", nargs="?", help="show one variant in full")
    listing.add_argument("--kind", choices=["layer", "position", "model"], help="only variants of one kind")

    check = _command(
        commands,
        "check",
        check_targets,
        "put attention layers through the battery of properties",
        "biases check mypkg.attention:make_layer --trait causal=true",
        extra="check",
    )
    add_check_arguments(check)
    add_check_reports(check)

    mutants = _command(
        commands,
        "mutants",
        show_mutants,
        "put subjects with one planted fault each through the battery, and say which property caught which",
        "biases mutants peek --all-properties",
        extra="check",
    )
    mutants.add_argument("names", nargs="*", metavar="NAME", help="only these mutants and sound subjects")
    which = mutants.add_mutually_exclusive_group()
    which.add_argument("--property", action="append", metavar="P", help="put all to this property; may be repeated")
    which.add_argument("--all-properties", action="store_true", help="put all to every property; takes minutes")
    mutants.add_argument("--slow", action="store_true", help="also those found only by compiling or exporting")
    mutants.add_argument("--max-examples", type=int, default=25, metavar="N", help="inputs each (default: %(default)s)")
    mutants.add_argument("--seed", type=int, default=0, metavar="S", help="of the search (default: %(default)s)")

    measured = _command(
        commands,
        "bench",
        measure_workloads,
        "check variants of the zoo, then time them beside attention without a bias, interleaved",
        "biases bench alibi ega --length 1024 4096 --peers",
        extra="bench",
    )
    add_bench_arguments(measured)

    compared = _command(
        commands,
        "compare",
        compare_commits,
        "measure two commits of this git repository against each other, interleaved",
        "biases compare main --bench operators --markdown comparison.md",
        extra="bench",
    )
    add_revisions(compared)
    add_compare_arguments(compared)
    add_compare_reports(compared)

    continuous = _command(
        commands,
        "ci",
        run_in_ci,
        "check, compare with a base revision, and write reports: one command for continuous integration",
        "biases ci --check 'mypkg.attention:make_layer --trait causal=true' --base HEAD^1",
        extra="check,bench",
    )
    add_ci_arguments(continuous)

    profiled = _command(
        commands,
        "profile",
        profile_target,
        "write a trace for Perfetto and TensorBoard, and say what takes the time and what of it is attention",
        "biases profile ega --length 4096 --forward-only",
        extra="profile",
    )
    add_profile_arguments(profiled)

    ablated = _command(
        commands,
        "ablate",
        run_ablation,
        "run a study's trainings, or what is left of them",
        "biases ablate benchmarks/ablations/gate-sight-small.toml --workers 2",
        extra="ablate",
    )
    add_ablate_arguments(ablated)

    statistics = _command(
        commands,
        "stats",
        analyse_study,
        "the tests, intervals, effect sizes and power of a study's results",
        "biases stats runs/gate-sight-small",
        extra="ablate",
    )
    add_stats_arguments(statistics)

    claimed = _command(
        commands,
        "claims",
        check_claims,
        "test what the papers state, and show the evidence",
        "biases claims ega-causal",
        extra="check",
    )
    add_claims_arguments(claimed)

    reported = _command(
        commands,
        "report",
        report_results,
        "one offline HTML page of verification, benchmarks, ablations, claims and a gallery of the zoo",
        "biases report runs/gate-sight-small claims.json --out report.html",
        extra="report",
    )
    add_report_arguments(reported)

    demo = _command(
        commands,
        "demo",
        demonstrate,
        "verify, benchmark, ablate and report, small, in a few minutes",
        "biases demo --dataset tinyshakespeare",
        extra="demo",
    )
    text = demo.add_mutually_exclusive_group()
    text.add_argument("--text", metavar="FILE", help="train on this UTF-8 text")
    text.add_argument("--dataset", default="pydoc", help="pydoc (the default, no network) or tinyshakespeare")
    demo.add_argument("--out", default="runs/demo", metavar="DIR", help="folder of the results (default: %(default)s)")
    demo.add_argument("--seeds", type=int, default=8, help="seeds of the ablation (default: %(default)s)")
    return parser


def _command(commands: Any, name: str, run: Any, what: str, example: str, *, extra: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=what, epilog=f"example: {example}")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(run=run, extra=extra)
    return parser


def list_zoo(options: argparse.Namespace) -> int:
    """``biases list [NAME]``"""
    from biases.listing import show_all, show_one

    if options.name:
        show_one(options.name, options.json)
        return OK
    return OK if show_all(options.kind, options.json) else NOTHING


def check_targets(options: argparse.Namespace) -> int:
    """``biases check TARGET...``"""
    from biases.checking.command import run

    return run(options)


def show_mutants(options: argparse.Namespace) -> int:
    """``biases mutants [NAME...]``"""
    from biases.testing import PROPERTIES
    from biases.testing.mutants import exit_code
    from biases.testing.mutants.show import follow, show

    fast = [name for name, each in PROPERTIES.items() if options.slow or not each.slow]
    rows = follow(
        options.names or None,
        options.property or (fast if options.all_properties else None),
        max_examples=options.max_examples,
        seed=options.seed,
        slow=options.slow,
    )
    if options.json:
        print(json.dumps({"schema": 1, "rows": [row.as_dict() for row in rows]}, indent=1))
    else:
        show(rows)
    return exit_code(rows)


def measure_workloads(options: argparse.Namespace) -> int:
    """``biases bench [NAME...]``"""
    from biases.bench.command import run

    return run(options)


def compare_commits(options: argparse.Namespace) -> int:
    """``biases compare BASE [HEAD]``"""
    from biases.bench.compare.command import run

    return run(options)


def run_in_ci(options: argparse.Namespace) -> int:
    """``biases ci``"""
    from biases.ci.command import run

    return run(options)


def profile_target(options: argparse.Namespace) -> int:
    """``biases profile NAME``"""
    from biases.bench.profile.command import run

    return run(options)


def run_ablation(options: argparse.Namespace) -> int:
    """``biases ablate SPEC.toml``"""
    from biases.ablation.command import run

    return run(options)


def analyse_study(options: argparse.Namespace) -> int:
    """``biases stats DIR``"""
    from biases.ablation.stats_command import run

    return run(options)


def check_claims(options: argparse.Namespace) -> int:
    """``biases claims [ID...]``"""
    from biases.claims.command import run

    return run(options)


def report_results(options: argparse.Namespace) -> int:
    """``biases report [INPUT...]``"""
    from biases.report.command import run

    return run(options)


def demonstrate(options: argparse.Namespace) -> int:
    """``biases demo``"""
    from biases.demo import run_demo
    from biases.demo.summary import show

    if options.seeds < 2:
        raise ValueError(f"--seeds: expected at least 2 for a paired comparison, got {options.seeds}")
    data = options.dataset if options.text is None else options.text
    demo = run_demo(data, options.out, seeds=range(options.seeds))
    if options.json:
        print(json.dumps(demo.results, indent=1))
    else:
        show(demo)
    if demo.interrupted:
        return INTERRUPTED
    return FAILED if demo.failures else OK


if __name__ == "__main__":
    sys.exit(main())
