"""`biases report`: what it recognises, refuses and passes over, what it writes, and what it serves."""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="the report extra is not installed")
pytest.importorskip("plotly", reason="the report extra is not installed")

from analysed_results import EFFECTS, SPEC, luck, outcome, text_result
from report_pages import Page, claims, sample_results

from biases import cli
from biases.ablation.results import write_result
from biases.ablation.study import load_study
from biases.report.inputs import gather, gather_defaults
from biases.report.serve import server

ROW = {
    "name": "alibi",
    "level": "operator",
    "setting": {"batch": 2, "heads": 4, "head_dim": 64, "dtype": "float32", "device": "cpu", "direction": "forward"},
    "peer": None,
    "formulations": ["native"],
    "status": "ok",
    "message": "",
    "peak_bytes": 2048,
    "floor_peak_bytes": 1024,
}


CHECK = {"subject": "a", "property": "p", "promise": "A promise.", "status": "passed", "examples": 1}
HUGE = {"batch": 10**400, "length": 1}


def bench_document() -> dict:
    rows = []
    for length in (256, 1024):
        seconds = 1e-6 * length
        times = {"samples": {"median": seconds, "low": seconds, "high": seconds}, "floor": {"median": seconds / 2}}
        ratio = {"value": 2.0, "low": 1.9, "high": 2.1, "rounds": 5}
        rate = {"tokens_per_second": 2 * length / seconds}
        rows.append({**ROW, **times, **rate, "ratio": ratio, "setting": {**ROW["setting"], "length": length}})
    rows.append({**rows[-1], "peer": "flash"})
    return {"schema": 1, "configuration": {"seed": 0}, "machine": {"cpu": "here"}, "rows": rows}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A finished study, but for one cell that was never run and one that is broken, both of seed 0."""
    folder = tmp_path / "runs" / "sight-tiny"
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(SPEC)
    first, second, *cells = load_study(folder / "study.toml").grid.cells()
    for cell in cells:
        write_result(folder, outcome(cell, text_result, 1.5 + EFFECTS[cell.arm] + luck(cell)))
    (folder / "cells" / f"{first.id}.json").write_text('{"schema": 1,')
    assert (first.seed, second.seed) == (0, 0)
    return folder


@pytest.fixture
def asv_results(tmp_path: Path) -> Path:
    """Five commits before a step and five after it, as asv writes them."""
    folder = tmp_path / "asv"
    (folder / "box").mkdir(parents=True)
    params = [["'alibi'", "'ega'"]]
    versions = {"a.time_call": "1", "a.time_changed": "2"}
    benchmarks = {
        name: {"name": name, "params": params, "param_names": ["bias"], "version": version, "unit": "seconds"}
        for name, version in versions.items()
    }
    dump(folder / "benchmarks.json", {**benchmarks, "version": 2})
    dump(folder / "box" / "machine.json", {"machine": "box", "version": 1})
    for index in range(10):
        value = (1.0 if index < 5 else 2.0) + 1e-3 * index
        run = {
            "commit_hash": str(index) * 40,
            "env_name": "checkout",
            "date": 1_700_000_000_000 + index,
            "params": {"machine": "box"},
            "python": "3.11",
            "requirements": {},
            "env_vars": {},
            "result_columns": ["result", "params", "version"],
            "results": {name: [[value, math.nan], params, "1"] for name in benchmarks},
            "durations": {},
            "version": 2,
        }
        dump(folder / "box" / f"{str(index) * 8}-checkout.json", run)
    return folder


def dump(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def report(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, dict]:
    code = cli.main(["report", "--json", "--no-gallery", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_inputs_are_recognised_by_content(study: Path, tmp_path: Path, capsys) -> None:
    files = [
        dump(tmp_path / "a.json", {"results": sample_results()["verification"]["results"], "schema": 1}),
        dump(tmp_path / "b.json", bench_document()),
        dump(tmp_path / "c.json", claims()),
    ]
    out = tmp_path / "page.html"
    code, told = report(capsys, *map(str, files), str(study), "--out", str(out))
    assert code == 0
    assert told["sections"] == {"verification": 1, "bench": 1, "claims": 1, "ablation": 1}
    assert told["bytes"] == out.stat().st_size
    page = Page(out.read_text(encoding="utf-8"))
    text = page.text()
    # A document that names its command is believed.
    for path, command in zip(files, ("a run of biases check", "a run of biases bench", "biases claims"), strict=True):
        assert f"Made by {command} from {path}." in text
    assert "sight (tiny)" in text
    titles = [figure["title"] for figure in page.figures().values()]
    heading = "operator, cpu, float32, batch 2, heads 4, head dim 64, forward"
    assert f"{heading}: Throughput against length" in [title.replace("<br>", " ") for title in titles]


def test_a_study_shows_its_statistics_and_its_broken_cell(study: Path) -> None:
    from biases.report import render

    found = gather([study])
    page = Page(render(found.sections))
    text = page.text()
    assert "unreadable, result" in text
    assert "What does a gate gain by sight of the future?" in text
    (part,) = found.sections["ablation"]
    rows = {row["name"]: row for row in part["contrasts"]}
    assert [rows[name]["family"] for name in ("ega", "mope with ega")] == [True, False]
    assert (rows["both"]["n"], rows["mope with ega"]["n"]) == (7, 8)
    shown = {figure["title"].partition(": ")[2]: figure for figure in page.figures().values()}
    lines = shown["Interaction: both"]["data"]
    assert [line["name"] for line in lines] == ["standard", "ega"]
    assert lines[0]["x"] == ["learned", "mope"]
    for line in lines:
        for position, mean in zip(line["x"], line["y"], strict=True):
            found = part["arms"][f"{line['name']}+{position}"]["full"]
            values = [found[str(seed)] for seed in rows["both"]["seeds"]]
            assert mean == pytest.approx(sum(values) / 7, rel=1e-4)
    forest = shown["Paired effects"]["data"][0]
    assert forest["marker"]["symbol"] == ["square"] * 4 + ["square-open"]


def test_the_history_of_asv_has_its_steps(asv_results: Path) -> None:
    (part,) = gather([asv_results]).sections["history"]
    assert part["machine"] == "box"
    # Values of another version of a benchmark are left out, as are parameters that were never measured.
    (series,) = part["series"]
    assert (series["benchmark"], series["params"]) == ("a.time_call", "alibi")
    (step,) = series["steps"]
    assert step["at"] == 5
    assert step["ratio"] == pytest.approx(2.0, rel=0.01)


def test_a_value_weighs_as_much_as_it_is_certain(asv_results: Path) -> None:
    for path in asv_results.glob("box/*-checkout.json"):
        run = json.loads(path.read_text())
        # What lies before the step was hardly measured.
        wide = 2.0 if run["date"] % 10 < 5 else 1e-3
        run["result_columns"] += ["stats_ci_99_a", "stats_ci_99_b"]
        for columns in run["results"].values():
            value = columns[0][0]
            columns += [[value - wide, None], [value + wide, None]]
        dump(path, run)
    (part,) = gather([asv_results]).sections["history"]
    assert part["series"][0]["steps"] == []


def test_the_committed_results_are_read() -> None:
    results = Path(__file__).parent.parent / "benchmarks" / "results"
    found = gather([results])
    assert {"bench", "claims", "history"} <= set(found.sections)
    assert all(part["file"].startswith(str(results)) for parts in found.sections.values() for part in parts)


def test_the_working_directory_is_searched(study: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    dump(tmp_path / "runs" / "notes.json", {"about": "something else"})
    (tmp_path / "runs" / "log.json").write_text("not JSON")
    broken = tmp_path / "runs" / "other"
    (broken / "cells").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    code, told = report(capsys)
    assert code == 0
    assert told["sections"]["ablation"] >= 1
    assert (tmp_path / "report.html").is_file()
    why = {Path(each["path"]).name: each["why"] for each in told["skipped"]}
    assert why["runs"] == "no results of these commands: notes.json"
    assert why["log.json"].startswith("expected JSON, got")
    assert "expected study.toml beside its cells" in why["other"]


def test_one_study_is_shown_once_with_the_most_cells(study: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "runs" / "begun"
    fewer.mkdir()
    (fewer / "study.toml").write_text(SPEC)
    (fewer / "cells").mkdir()
    for path in sorted((study / "cells").glob("*.json"))[:4]:
        (fewer / "cells" / path.name).write_bytes(path.read_bytes())
    found = gather([tmp_path / "runs"])
    assert [part["file"] for part in found.sections["ablation"]] == [str(study)]
    assert found.skipped == [(str(fewer), f"the same results are shown from {study}")]


def test_without_results_the_page_says_how_to_get_them(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("biases.claims.analyses.KEPT", tmp_path)
    code, told = report(capsys)
    assert (code, told["sections"]) == (3, {})
    assert "run biases claims --json > claims.json" in Page((tmp_path / "report.html").read_text()).text()
    assert not gather_defaults(tmp_path).skipped


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ('{"schema": 1', "expected JSON, got Expecting"),
        ("[1]", "got JSON of a list"),
        ('{"rows": [], "other": 1}', "got an object with rows, other"),
        (
            '{"results": [{"subject": "a", "property": "p", "status": "fine"}]}',
            "'biases check' writes them, got stat",
        ),
        ('{"claims": [{"id": "a", "statement": "s", "status": "true"}]}', "'biases claims' writes them, got status"),
        ('{"study": "s", "arms": 3, "contrasts": [], "statistics": {}}', "'biases stats' writes them, got KeyError"),
        ('{"rows": [{"name": "a", "setting": 3, "samples": {}}]}', "'biases bench' writes them, got AttributeError"),
        ("[" * 100_000, "expected JSON, got"),
    ],
)
def test_foreign_files_are_refused_by_name(content: str, got: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "foreign.json"
    path.write_text(content)
    assert cli.main(["report", str(path), "--out", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert f"{path}: expected" in error
    assert got in error
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("document", "got"),
    [
        ({"schema": 1, "results": [], "summary": {}}, "expected results of `biases check`, got no results in it"),
        ({"schema": 1, "complete": False, "rows": []}, "expected results of `biases bench`, got no results in it"),
        ({"schema": 1, "claims": [], "summary": {}}, "expected results of `biases claims`, got no results in it"),
        ({"results": [{**CHECK, "examples": 10**400}]}, "got examples of a result: expected a number of at most"),
        ({"rows": [{**ROW, "samples": {}, "peak_bytes": 10**400}]}, "got peak_bytes of a benchmark: expected a number"),
        ({"rows": [{**ROW, "samples": {"median": 1.0}, "setting": HUGE}]}, "got OverflowError"),
        ({"rows": [{**ROW, "samples": {"median": -1}}]}, "got seconds_median of a benchmark: expected 0 or more"),
        ({"rows": [{**ROW, "samples": {}, "ratio": {"value": -2}}]}, "got ratio of a benchmark: expected 0 or more"),
    ],
)
def test_files_without_results_and_with_impossible_ones_are_refused(
    document: dict, got: str, tmp_path: Path, capsys
) -> None:
    path = dump(tmp_path / "results.json", document)
    assert cli.main(["report", str(path), "--out", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert got in error


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, monkeypatch, capsys) -> None:
    path = dump(tmp_path / "check.json", {})

    def broken(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    assert cli.main(["report", str(path), "--out", str(tmp_path / "page.html")]) == 2
    expected = f"{path}: expected a file or folder that can be read, got Input/output error"
    assert expected in capsys.readouterr().err


def test_absent_and_empty_inputs_are_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    for argument, got in (("absent", "got no such file or folder"), ("empty", "got a folder without any")):
        assert cli.main(["report", str(tmp_path / argument)]) == 2
        assert got in capsys.readouterr().err
    assert cli.main(["report", "--out", str(tmp_path)]) == 2
    assert "--out: expected a file that can be written" in capsys.readouterr().err


def test_the_server_has_one_page_on_loopback(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><title>x</title>")
    with server(page) as listening:
        host, port = listening.server_address[:2]
        assert host == "127.0.0.1"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            requests = (("GET", "/"), ("HEAD", "/"), ("GET", "/../page.html"), ("GET", "//"))
            answers = [ask(port, *request) for request in requests]
            page.unlink()
            answers.append(ask(port, "GET", "/"))
            with pytest.raises(ValueError, match=f"--serve: expected a free address, got 127.0.0.1:{port}"):
                server(page, port=port)
        finally:
            listening.shutdown()
            thread.join()
    assert [status for status, _ in answers] == [200, 200, 404, 404, 404]
    assert answers[0][1] == b"<!DOCTYPE html><title>x</title>"
    assert answers[1][1] == b""
    with pytest.raises(ValueError, match="--port: expected 0 to 65535, got 70000"):
        server(page, port=70000)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, capfd) -> None:
    page = tmp_path / "page.html"
    page.touch()
    os.truncate(page, 2**25)
    before = threading.active_count()
    with server(page) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with socket.create_connection(listening.server_address[:2], timeout=10) as reader:
                # Closed with a reset, while most of the page is still to come.
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                reader.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert reader.recv(100).startswith(b"HTTP/1.0 200")
            end = time.monotonic() + 10
            while threading.active_count() > before + 1 and time.monotonic() < end:
                time.sleep(0.01)
            assert threading.active_count() == before + 1
        finally:
            listening.shutdown()
            thread.join()
        assert capfd.readouterr().err == ""
        try:
            raise RuntimeError("a fault of the server")
        except RuntimeError:
            listening.handle_error(None, ("127.0.0.1", 1))
        assert "a fault of the server" in capfd.readouterr().err


def ask(port: int, method: str, path: str) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found
