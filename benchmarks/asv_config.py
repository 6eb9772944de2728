"""asv's configuration of a checkout, wherever asv is started, and its command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDERS = ("benchmark_dir", "results_dir", "env_dir", "html_dir")


def write_config(root: Path, folder: Path, **changes: Any) -> Path:
    """Write the configuration of the checkout ``root`` into ``folder``, with absolute paths and with ``changes``."""
    config = json.loads((root / "asv.conf.json").read_text(encoding="utf-8"))
    config |= {"repo": str(root)} | {name: str(root / config[name]) for name in FOLDERS} | changes
    path = folder / "asv.conf.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def asv_command(config: Path, *arguments: str) -> list[str]:
    """To be run in the root of a checkout, where asv finds the plugin."""
    return [sys.executable, "-m", "asv", "--config", str(config), *arguments]
