"""Publish the results of asv as its site, and count what is in it.

    python -m benchmarks.asv_site                   of the committed results, into .asv/html; as `make site`
    python -m benchmarks.asv_site --branch HEAD     of a branch that is not main

asv leaves out, with a warning at most, results of commits that are not on the branch or not in the clone, and files
that it cannot read; so what it wrote is read again. Exit code 0: every result is in the site; 1: some are not; 2: bad
usage, no such branch, or asv cannot be run; 3: nothing was published.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from benchmarks import asv_page
from benchmarks.asv_config import asv_command, write_config
from benchmarks.asv_results import Saved, read_published, read_saved, write_copy, write_empty_charts
from biases._files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "asv"
SITE = ROOT / ".asv" / "html"
LIBRARIES = ROOT / ".asv" / "page"
COMMITS_PAGE = "commits.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    options = _parser().parse_args(arguments)
    try:
        return publish(options.root, options.results.resolve(), options.out.resolve(), options.branch, options.linked)
    except ValueError as error:
        print(f"benchmarks.asv_site: {error}", file=sys.stderr)
        return 2


def publish(root: Path, results: Path, out: Path, branch: str | None = None, linked: bool = False) -> int:
    """Write the site into ``out``; the exit code.

    Args:
        root: of the checkout whose history it is.
        results: asv's folder of results.
        out: new, empty, or a site already.
        branch: results of other commits are not shown; the configuration's unless given.
        linked: leave the page's scripts on the hosts where asv's page finds them.

    Raises:
        ValueError: no checkout or no such branch, ``out`` is not what it should be, or asv fails.
    """
    branch = branch or json.loads((root / "asv.conf.json").read_text(encoding="utf-8"))["branches"][0]
    on_branch = set(_git(root, "rev-list", "--first-parent", _revision(root, branch), "--").split())
    if out.exists() and not (out / "info.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out: expected a new folder or a site of asv, got {out}")
    saved = read_saved(results)
    if not saved.values:
        print(f"benchmarks.asv_site: no results under {results}", file=sys.stderr)
        return _tell(saved, (), 3)
    _asv_publish(root, saved, out, branch)
    index = json.loads((out / "index.json").read_text(encoding="utf-8"))
    write_empty_charts(out, index)
    _write_commits(root, out / COMMITS_PAGE, index)
    _put_libraries(out / "index.html", linked)
    shown = read_published(out, index)
    lost = []
    for (machine, commit), number in sorted((saved.values - shown).items()):
        why = _reason(root, commit, on_branch)
        lost.append(f"{number} of {saved.values[machine, commit]} values of {commit[:8]} on {machine}: {why}")
    for machine in sorted({machine for machine, _ in shown}):
        numbers = [number for place, number in shown.items() if place[0] == machine]
        print(f"{machine}: commits {len(numbers)}, values {sum(numbers)}")
    if not shown:
        return _tell(saved, lost, 3)
    if len({commit for _, commit in shown}) == 1:
        print("one commit is no history, and the grid draws lines: python -m benchmarks.history measures more")
    print(f"{out}: to look at it, python -m http.server --bind 127.0.0.1 --directory {out}")
    return _tell(saved, lost, 1 if lost or saved.unread else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.asv_site", description="Publish the results of asv as its site, and count."
    )
    parser.add_argument("--out", type=Path, default=SITE, metavar="DIR", help="of the site (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="asv's (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="checkout (default: %(default)s)")
    parser.add_argument("--branch", help="whose commits are shown (default: that of asv.conf.json)")
    parser.add_argument("--linked", action="store_true", help="load scripts from asv's hosts, without npm")
    return parser


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"git {' '.join(arguments)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def _revision(root: Path, branch: str) -> str:
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{branch}^{{commit}}").strip()
    except ValueError:
        raise ValueError(f"--branch: expected a branch of {root}, got {branch!r}") from None


def _asv_publish(root: Path, saved: Saved, out: Path, branch: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "results")
        write_copy(saved, copy)
        config = write_config(
            root,
            Path(folder),
            branches=[branch],
            results_dir=str(copy),
            html_dir=str(out),
            plugins=[],
            show_commit_url=f"{COMMITS_PAGE}#",
        )
        done = subprocess.run(
            asv_command(config, "publish", "--no-pull"), cwd=root, capture_output=True, text=True, errors="replace"
        )
    if done.returncode or not (out / "index.json").is_file():
        raise ValueError(f"asv publish: exit code {done.returncode}\n{(done.stdout + done.stderr).strip()}")


def _write_commits(root: Path, path: Path, index: Mapping[str, Any]) -> None:
    """A page with every commit that has results, which the site's links to commits lead to."""
    rows = []
    for revision, commit in sorted(index["revision_to_hash"].items(), key=lambda item: -int(item[0])):
        date = datetime.fromtimestamp(index["revision_to_date"][revision] / 1000, tz=UTC)
        subject = _git(root, "log", "-1", "--format=%s", commit).strip()
        short = commit[: index["hash_length"]]
        # The site links by the short and the whole hash.
        rows.append(
            f'<tr id="{commit}"><td id="{short}"><code>{short}</code></td><td>{date:%Y-%m-%d %H:%M}</td>'
            f"<td>{escape(subject)}</td></tr>"
        )
    title = f"Commits of {escape(index['project'])} with results"
    style = (
        "body { font-family: sans-serif } td { padding: 0.2em 0.6em } tr:target, tr:has(:target) { background: #fe9 }"
    )
    icon = '<link rel="icon" href="swallow.ico">'
    text = f"{icon}<title>{title}</title><style>{style}</style><h1>{title}</h1><table>{''.join(rows)}</table>"
    write_atomically(path, f'<!doctype html><html lang="en"><meta charset="utf-8">{text}</html>\n'.encode())


def _put_libraries(page: Path, linked: bool) -> None:
    reason = "--linked"
    if not linked:
        try:
            asv_page.put_beside(page, asv_page.fetch(LIBRARIES))
            return
        except RuntimeError as error:
            reason = str(error)
    print(f"the pages load their scripts from {', '.join(asv_page.hosts(page))}: {reason}")


def _reason(root: Path, commit: str, on_branch: set[str]) -> str:
    if commit in on_branch:
        return "asv left them out"
    if subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=root, capture_output=True).returncode == 0:
        return "the commit is not on the branch's first-parent history"
    if _git(root, "rev-parse", "--is-shallow-repository").strip() == "true":
        return "the commit is not in this clone, which is shallow: git fetch --unshallow"
    return "the commit is not in this clone"


def _tell(saved: Saved, lost: Sequence[str], code: int) -> int:
    empty = [name for name, where in saved.measured.items() if not where]
    if empty:
        print(f"not shown, as no machine has a value of them: {', '.join(empty)}")
    if saved.older:
        print(f"{saved.older} values are of benchmarks that have changed or gone since, and are not shown")
    for line in (*lost, *saved.unread):
        print(f"  not published: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
