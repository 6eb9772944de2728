"""A cache of downloads that is the test's own, and a network that answers as it is told."""

from __future__ import annotations

import io
import urllib.error
import urllib.request


def own_cache(tmp_path, monkeypatch):
    """The folder, which is not there yet."""
    monkeypatch.setenv("BIASES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def serve(monkeypatch, content):
    """Answer every request with these bytes; the list gets its URL."""
    urls = []

    def urlopen(url, timeout):
        urls.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return urls


def disconnect(monkeypatch):
    def urlopen(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
