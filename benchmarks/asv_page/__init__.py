"""What asv's pages load from elsewhere, put beside them.

asv's ``index.html`` takes jQuery, flot and others from content networks, so that a site that is served without a
network stays empty. They are the packages of ``package-lock.json`` here, which npm fetches by version and hash.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = "package-lock.json"
SECONDS = 120.0

# What asv names, as the packages have it. flot is not minified there, and stupid-table-plugin is newer.
FILES = {
    "jquery-3.3.1.min.js": "jquery/dist/jquery.min.js",
    "jquery.flot.min.js": "flot/jquery.flot.js",
    "jquery.flot.time.min.js": "flot/jquery.flot.time.js",
    "jquery.flot.selection.min.js": "flot/jquery.flot.selection.js",
    "jquery.flot.categories.min.js": "flot/jquery.flot.categories.js",
    "jquery.flot.orderBars.js": "flot-orderbars/js/jquery.flot.orderBars.js",
    "stupidtable.min.js": "stupid-table-plugin/stupidtable.min.js",
    "md5.min.js": "blueimp-md5/js/md5.min.js",
    "bootstrap.min.js": "bootstrap/dist/js/bootstrap.min.js",
    "bootstrap.min.css": "bootstrap/dist/css/bootstrap.min.css",
}
LOADED = re.compile(r'(?P<attribute>src|href)="(?P<url>https?://[^"]+)" integrity="[^"]+"(?P<rest>[^>]*)>')
OF_OTHER_HOSTS = re.compile(r' (?:crossorigin|referrerpolicy)="[^"]*"')


def fetch(folder: Path) -> Path:
    """Install the packages into ``folder`` unless they are there; the folder of modules.

    Raises:
        RuntimeError: there is no npm, or it could not fetch them.
    """
    modules, lock = folder / "node_modules", (HERE / LOCK).read_bytes()
    installed = folder / LOCK
    if modules.is_dir() and installed.is_file() and installed.read_bytes() == lock:
        return modules
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm, which would fetch what its pages load, is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    installed.unlink(missing_ok=True)
    shutil.copy(HERE / "package.json", folder)
    # Under its own name only once it is installed, so that what was interrupted is done again.
    pending = folder / "npm-shrinkwrap.json"
    pending.write_bytes(lock)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error", "--fetch-retries", "0"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"npm fetched nothing in {SECONDS:.0f} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"npm ended with code {done.returncode}: {said[0] if said else 'without a word'}")
    pending.replace(installed)
    return modules


def hosts(page: Path) -> list[str]:
    """Other hosts that ``page`` loads something from."""
    found = LOADED.finditer(page.read_text(encoding="utf-8"))
    return sorted({each["url"].split("/")[2] for each in found})


def put_beside(page: Path, modules: Path) -> int:
    """Copy what ``page`` loads from other hosts into ``vendor`` beside it, and load that; how many files.

    Raises:
        ValueError: it loads something that is not in :data:`FILES`.
    """
    html, folder = page.read_text(encoding="utf-8"), page.parent / "vendor"
    folder.mkdir(exist_ok=True)

    def local(found: re.Match[str]) -> str:
        name = found["url"].rpartition("/")[2]
        if name not in FILES:
            raise ValueError(f"{page}: expected one of {', '.join(FILES)}, got {found['url']}")
        shutil.copy(modules / FILES[name], folder / name)
        return f'{found["attribute"]}="vendor/{name}"{OF_OTHER_HOSTS.sub("", found["rest"])}>'

    html, number = LOADED.subn(local, html)
    page.write_text(html, encoding="utf-8")
    return number
