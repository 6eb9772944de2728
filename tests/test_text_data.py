import hashlib

import pytest
import torch
from downloads import disconnect, own_cache, serve

from biases.ablation import data
from biases.ablation.data import Text, TextUnavailable, load_text

CONTENT = "To be, or not to be: that is the question.\n" * 5


cache = pytest.fixture(own_cache)


@pytest.fixture
def served(monkeypatch):
    """Serve CONTENT as the dataset, and list the downloads."""
    monkeypatch.setattr(data, "SHAKESPEARE_SHA256", hashlib.sha256(CONTENT.encode()).hexdigest())
    return serve(monkeypatch, CONTENT.encode())


def test_pydoc_is_english_and_split_nine_to_one():
    text = load_text()
    assert text.name == "pydoc"
    assert " the " in text.decode()
    assert len(text.train) == int(0.9 * len(text.tokens))
    assert torch.equal(torch.cat((text.train, text.validation)), text.tokens)
    assert list(text.vocabulary) == sorted(set(text.decode()))
    assert text.sha256 == hashlib.sha256(text.decode().encode()).hexdigest()


def test_file_round_trips_without_newline_translation(tmp_path):
    content = "zażółć\r\n\U0001f642 gęślą jaźń\n"
    path = tmp_path / "text.txt"
    path.write_bytes(content.encode())
    text = load_text(path)
    assert text.decode() == content
    assert text.decode(text.tokens[:6]) == "zażółć"
    assert text.tokens.dtype == torch.int64
    assert text.name == str(path)
    assert text.sha256 == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least 11 characters, got 0"),
        (b"0123456789", "at least 11 characters, got 10"),
        (b"long enough to split \xff", "expected UTF-8, got byte 0xff at offset 21"),
    ],
)
def test_unusable_files_are_refused(tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_text(str(path))


def test_unknown_name_and_directory_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one of 'pydoc', 'tinyshakespeare', got 'shakespear'"):
        load_text("shakespear")
    with pytest.raises(ValueError, match="directory"):
        load_text(tmp_path)


def test_shortest_text_has_a_prediction_in_each_split():
    text = Text.from_string("short", "abcdefghijk")
    assert (len(text.train), len(text.validation)) == (9, 2)


def test_download_is_cached(cache, served):
    assert load_text("tinyshakespeare").decode() == CONTENT
    assert load_text("tinyshakespeare").decode() == CONTENT
    assert served == [data.SHAKESPEARE_URL]
    assert [path.name for path in cache.iterdir()] == ["tinyshakespeare.txt"]


def test_wrong_download_is_refused_and_not_kept(cache, served, monkeypatch):
    serve(monkeypatch, b"not Shakespeare")
    with pytest.raises(TextUnavailable, match=f"expected SHA-256 {data.SHAKESPEARE_SHA256}"):
        load_text("tinyshakespeare")
    assert not cache.exists() or not list(cache.iterdir())


def test_damaged_cache_is_refused_then_fetched_anew(cache, served):
    cache.mkdir()
    (cache / "tinyshakespeare.txt").write_text(CONTENT[:-1])
    with pytest.raises(TextUnavailable, match="damaged copy was removed"):
        load_text("tinyshakespeare")
    assert not list(cache.iterdir())
    assert load_text("tinyshakespeare").decode() == CONTENT


def test_no_network_names_the_file_and_the_alternatives(cache, monkeypatch):
    disconnect(monkeypatch)
    with pytest.raises(ValueError, match="no route to host") as caught:
        load_text("tinyshakespeare")
    for part in (data.SHAKESPEARE_URL, "--text FILE", "'pydoc'"):
        assert part in str(caught.value)


def test_unwritable_cache_still_gives_the_text(tmp_path, served, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BIASES_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="could not be cached"):
        assert load_text("tinyshakespeare").decode() == CONTENT


def test_cache_directory_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("BIASES_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.cache_directory() == tmp_path / "xdg" / "biases"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert data.cache_directory() == tmp_path / ".cache" / "biases"
    monkeypatch.setenv("BIASES_CACHE", str(tmp_path / "own"))
    assert data.cache_directory() == tmp_path / "own"
