"""The site of asv: every result is in it, machines stay apart, steps are marked, and nothing is left out unsaid."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks import asv_page, asv_site
from benchmarks.asv_results import read_saved, write_copy
from benchmarks.browser import missing, running, visiting

CPU, GPU = "intel-xeon-2c-torch2.13.0-2t", "h100-80gb-hbm3-driver570.86-cuda12.8-intel-xeon-16c-torch2.13.0-8t"
COMMITS, STEP = 8, 5  # how many, and the first of those that are slower
TIMES, CUDA, NEVER = "operators.Cpu.time_call", "operators.Cuda.track_call", "layers.Cuda.track_call"
AXES = [["'alibi'", "'swat'", "'ega'"], ["64", "128"]]
COLUMNS = ["result", "params", "version", "started_at", "duration"]
NAN = math.nan


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *author, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path, message: str) -> str:
    git(folder, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")


def write_results(folder: Path, machine: str, commit: str, results: dict, date: int = 0, os: str = "Linux 6.1") -> Path:
    """One file as asv writes it; ``results`` are values by the benchmark's name, of version 1 and the axes above."""
    facts = {"machine": machine, "os": os, "arch": "x86_64", "cpu": "a", "num_cpu": "2", "ram": f"{date} bytes"}
    saved = {
        "commit_hash": commit,
        "env_name": "checkout-py3.11",
        "date": date * 1000,
        "params": facts | {"python": "3.11"},
        "python": "3.11",
        "requirements": {},
        "env_vars": {},
        "result_columns": COLUMNS,
        "results": {name: [values, AXES, "1", 0, 1.0] for name, values in results.items()},
        "durations": {},
        "version": 2,
    }
    path = folder / machine / f"{commit[:8]}-checkout-py3.11.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(saved))
    (path.parent / "machine.json").write_text(json.dumps(facts | {"version": 1}))
    return path


def cpu_results(index: int) -> dict:
    """Of ``alibi`` twice as long from one commit on, of ``swat`` always the same, of ``ega`` never measured."""
    slower = 2e-3 if index >= STEP else 1e-3
    return {TIMES: [slower, slower, NAN, 3e-3, NAN, None], CUDA: [NAN] * 6, NEVER: [NAN] * 6}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A repository with results of two machines for every commit of main."""
    root = tmp_path_factory.mktemp("checkout")
    git(root, "init", "--quiet", "--initial-branch=main")
    folders = {"benchmark_dir": "suite", "results_dir": "results", "env_dir": "env", "html_dir": "html"}
    config = {"version": 1, "project": "tiny", "repo": ".", "branches": ["main"]} | folders
    (root / "asv.conf.json").write_text(json.dumps(config))
    benchmarks = {
        name: {
            "code": f"def {name}: pass",
            "name": name,
            "param_names": ["bias", "length"],
            "params": AXES,
            "timeout": 60,
            "type": "track",
            "unit": "seconds",
            "version": "1",
        }
        for name in (TIMES, CUDA, NEVER)
    }
    (root / "results").mkdir()
    (root / "results" / "benchmarks.json").write_text(json.dumps(benchmarks | {"version": 2}))
    for index in range(COMMITS):
        made = commit(root, f"<b>number</b> {index}")
        # The kernel of the machine was updated on the way.
        write_results(root / "results", CPU, made, cpu_results(index), index, f"Linux 6.{index // 4}")
        write_results(root / "results", GPU, made, {CUDA: [NAN, 5e-6, NAN, NAN, NAN, NAN], NEVER: [NAN] * 6}, index)
    return root


def publish(root: Path, out: Path, *arguments: str) -> int:
    results = root / "results"
    return asv_site.main(["--root", str(root), "--results", str(results), "--out", str(out), "--linked", *arguments])


@pytest.fixture(scope="module")
def site(checkout, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    assert publish(checkout, out) == 0
    return out


@pytest.fixture
def other(checkout, tmp_path) -> Path:
    """A copy of the checkout, to be spoilt."""
    return Path(shutil.copytree(checkout, tmp_path / "other"))


def load(path: Path):
    return json.loads(path.read_text())


def series(site: Path, machine: str, name: str) -> list:
    return load(site / "graphs" / "branch-main" / f"machine-{machine}" / "python-3.11" / f"{name}.json")


def test_machines_stay_apart_and_each_is_one_series(site):
    index = load(site / "index.json")
    assert set(index["machines"]) == {CPU, GPU}
    assert sorted(each["machine"] for each in index["graph_param_list"]) == [GPU, CPU]
    assert [value[0] for _, value in series(site, CPU, TIMES)] == [1e-3] * STEP + [2e-3] * (COMMITS - STEP)
    assert [value for _, value in series(site, GPU, CUDA)] == [[5e-6]] * COMMITS
    assert index["machines"][CPU]["os"] == "Linux 6.1"


def test_what_no_machine_has_measured_is_no_empty_chart(site):
    index = load(site / "index.json")
    assert set(index["benchmarks"]) == {TIMES, CUDA}
    assert index["benchmarks"][CUDA]["params"] == [["'alibi'"], ["128"]]
    assert index["benchmarks"][TIMES]["params"] == [["'alibi'", "'swat'"], ["128", "64"]]
    # Some other machine has: an empty chart there is a file too, whether asv was asked for it or not.
    assert series(site, CPU, CUDA) == []
    assert series(site, GPU, TIMES) == []


def test_a_chart_opens_on_what_has_most_values(site):
    """Of 64 tokens ``swat`` has none. The values are those of their parameters still, in asv's order as ours."""
    assert load(site / "index.json")["benchmarks"][TIMES]["params"][1][0] == "128"
    assert [values for _, values in series(site, CPU, TIMES)] == [
        [alibi, alibi, 3e-3, None] for alibi in [1e-3] * STEP + [2e-3] * (COMMITS - STEP)
    ]


def test_the_first_chart_of_the_committed_results_has_four_lines_of_five(tmp_path):
    saved = read_saved(asv_site.RESULTS)
    write_copy(saved, tmp_path / "copy")
    axes = load(tmp_path / "copy" / "benchmarks.json")[TIMES]["params"]
    opened = [(bias, *(axis[0] for axis in axes[1:])) for bias in axes[0]]
    assert (len(opened), sum(each in saved.measured[TIMES] for each in opened)) == (5, 4)


def test_a_step_is_marked_at_its_commit_and_nothing_else_is(site, checkout):
    hashes = load(site / "index.json")["revision_to_hash"]
    found = load(site / "regressions.json")["regressions"]
    assert sorted(each[0] for each in found) == [f"{TIMES}('alibi', 128)", f"{TIMES}('alibi', 64)"]
    first_slower = git(checkout, "rev-parse", f"main~{COMMITS - 1 - STEP}")
    for _, path, parameters, _, latest, best, jumps in found:
        assert CPU in path
        assert parameters == {"machine": CPU}
        assert (latest, best) == (2e-3, 1e-3)
        ((_, after, _, _),) = jumps
        assert hashes[str(after)] == first_slower


def test_links_to_commits_lead_to_a_page_that_has_them(site, checkout):
    index, page = load(site / "index.json"), (site / asv_site.COMMITS_PAGE).read_text()
    assert index["show_commit_url"] == f"{asv_site.COMMITS_PAGE}#"
    for made in git(checkout, "rev-list", "main").split():
        assert f'id="{made}"' in page
        assert f'id="{made[:8]}"' in page
    assert "&lt;b&gt;number&lt;/b&gt; 0" in page
    assert "<b>" not in page


def test_everything_is_counted(checkout, tmp_path, capsys):
    assert publish(checkout, tmp_path / "site") == 0
    printed = capsys.readouterr().out
    assert f"{CPU}: commits {COMMITS}, values {3 * COMMITS}\n" in printed
    assert f"{GPU}: commits {COMMITS}, values {COMMITS}\n" in printed
    assert f"not shown, as no machine has a value of them: {NEVER}\n" in printed
    assert "--bind 127.0.0.1" in printed
    assert "code.jquery.com" in printed


def test_what_asv_leaves_out_is_told(other, tmp_path, capsys):
    results = other / "results"
    git(other, "switch", "--quiet", "-c", "side")
    aside = commit(other, "aside")
    write_results(results, CPU, aside, cpu_results(0))
    write_results(results, GPU, "0" * 40, {CUDA: [1.0] * 6})
    broken = results / CPU / "11111111-checkout-py3.11.json"
    broken.write_text("{")
    homeless = write_results(results, "nowhere", aside, cpu_results(0))
    homeless.with_name("machine.json").unlink()
    older = load(results / "benchmarks.json")
    older[CUDA]["version"] = "2"
    (results / "benchmarks.json").write_text(json.dumps(older))
    assert publish(other, tmp_path / "site") == 1
    said = capsys.readouterr()
    assert f"3 of 3 values of {aside[:8]} on {CPU}: the commit is not on the branch's first-parent history" in said.err
    assert f"{broken}: " in said.err
    assert f"{homeless}: there is no machine.json beside it" in said.err
    assert f"{COMMITS + 6} values are of benchmarks that have changed or gone since" in said.out
    assert f"{CPU}: commits {COMMITS}, values {3 * COMMITS}\n" in said.out
    # Of that branch everything is there but the two files.
    assert publish(other, tmp_path / "site", "--branch", "side") == 1
    assert f"{CPU}: commits {COMMITS + 1}, values {3 * COMMITS + 3}\n" in capsys.readouterr().out


def test_a_shallow_clone_is_told_to_fetch_the_rest(checkout, tmp_path, capsys):
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth", "2", checkout.as_uri(), str(shallow))
    shutil.copytree(checkout / "results", shallow / "results")
    shutil.copy(checkout / "asv.conf.json", shallow)
    assert publish(shallow, tmp_path / "site") == 1
    said = capsys.readouterr()
    assert said.err.count("not in this clone, which is shallow: git fetch --unshallow") == 2 * (COMMITS - 2)
    assert f"{CPU}: commits 2, values 6\n" in said.out


def test_nothing_to_publish_is_not_well(other, tmp_path, capsys):
    for machine in (CPU, GPU):
        shutil.rmtree(other / "results" / machine)
    assert publish(other, tmp_path / "site") == 3
    assert "no results under" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()
    (other / "results" / "benchmarks.json").unlink()
    assert publish(other, tmp_path / "site") == 2


@pytest.mark.parametrize("branch", ["no-such-branch", "--all"])
def test_a_branch_that_is_not_there_is_bad_usage(checkout, tmp_path, capsys, branch):
    assert publish(checkout, tmp_path / "site", f"--branch={branch}") == 2
    assert f"got {branch!r}" in capsys.readouterr().err


def test_no_folder_of_someone_else_is_replaced(checkout, tmp_path, capsys):
    precious = tmp_path / "precious.txt"
    precious.write_text("kept")
    assert publish(checkout, tmp_path) == 2
    assert publish(checkout, precious) == 2
    assert "expected a new folder or a site of asv" in capsys.readouterr().err
    assert precious.read_text() == "kept"


def test_the_committed_results_can_be_read():
    saved = read_saved(asv_site.RESULTS)
    assert not saved.unread
    assert sum(saved.values.values()) > 0


# What the pages load


def test_all_that_the_pages_load_from_elsewhere_is_known(site, tmp_path):
    page = tmp_path / "index.html"
    shutil.copy(site / "index.html", page)
    assert asv_page.hosts(page) == ["cdn.jsdelivr.net", "cdnjs.cloudflare.com", "code.jquery.com"]
    modules = tmp_path / "modules"
    for path in asv_page.FILES.values():
        (modules / path).parent.mkdir(parents=True, exist_ok=True)
        (modules / path).write_text(path)
    assert asv_page.put_beside(page, modules) == len(asv_page.FILES)
    html = page.read_text()
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', html)
    for name, path in asv_page.FILES.items():
        assert f'"vendor/{name}"' in html
        assert (tmp_path / "vendor" / name).read_text() == path
    # Every package that a file is taken from is one that npm is told to fetch.
    packages = json.loads((asv_page.HERE / "package.json").read_text())["dependencies"]
    assert {path.partition("/")[0] for path in asv_page.FILES.values()} == set(packages)


def test_a_script_that_is_not_known_is_refused(tmp_path):
    page = tmp_path / "index.html"
    page.write_text('<script src="https://a.b/c.js" integrity="sha256-x" crossorigin="anonymous"></script>')
    with pytest.raises(ValueError, match=r"got https://a\.b/c\.js"):
        asv_page.put_beside(page, tmp_path)


def test_without_npm_the_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"npm, .* is not installed"):
        asv_page.fetch(tmp_path / "page")
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'no network' >&2\nexit 7\n")
    npm.chmod(0o755)
    with pytest.raises(RuntimeError, match="npm ended with code 7: no network"):
        asv_page.fetch(tmp_path / "page")
    # What failed is tried again, what was installed is not.
    npm.write_text("#!/bin/sh\n/bin/mkdir node_modules\n")
    assert asv_page.fetch(tmp_path / "page") == tmp_path / "page" / "node_modules"
    npm.unlink()
    assert asv_page.fetch(tmp_path / "page") == tmp_path / "page" / "node_modules"


class Handler(SimpleHTTPRequestHandler):
    """Keeps what was not found."""

    missed: list[str]

    def log_request(self, code: int = 0, size: object = "-") -> None:
        if int(code) >= 400:
            self.missed.append(f"{code} {self.path}")


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_every_page_is_drawn_and_nothing_is_logged(site, checkout, tmp_path):
    try:
        modules = asv_page.fetch(asv_site.LIBRARIES)
    except RuntimeError as error:
        pytest.skip(f"what the pages load cannot be had: {error}")
    folder = Path(shutil.copytree(site, tmp_path / "site"))
    asv_page.put_beside(folder / "index.html", modules)
    Handler.missed = []
    step = git(checkout, "rev-parse", f"main~{COMMITS - 1 - STEP}")[:8]
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server,
        running() as browser,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        for page, drawn, shown in (
            ("index.html", 2, (f'href="#{TIMES}"', f'href="#{CUDA}"')),
            ("index.html#/summarylist", 0, (CPU, GPU, CUDA, "5.000μs")),
            (f"index.html#/summarylist?machine={CPU}", 0, (CPU, GPU, TIMES, "('swat', 128)", "3.000ms")),
            ("index.html#/regressions", 0, (f"{TIMES}('alibi', 64)", "2.00x", f"commits.html#{step}")),
            (f"index.html#{TIMES}", 2, ("bias-alibi", CPU, GPU)),
            (f"index.html#{CUDA}", 2, (CPU, GPU)),
            (f"commits.html#{step}", 0, (step,)),
        ):
            with visiting(browser, home + page) as visit:
                for text in shown:
                    visit.page.wait_for_function("text => document.documentElement.outerHTML.includes(text)", arg=text)
                visit.page.wait_for_load_state("networkidle")
                visit.page.wait_for_function(
                    "drawn => document.querySelectorAll('.flot-base').length === drawn", arg=drawn
                )
                assert visit.logged == [], page
                assert {urlsplit(address).netloc for address in visit.requests} == {f"127.0.0.1:{server.server_port}"}
                assert visit.page.locator(".modal.in").count() == 0, page
        server.shutdown()
    assert Handler.missed == []
