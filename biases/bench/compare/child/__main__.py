"""``python -m child SUITE TREE FORBIDDEN...``: answer requests about a suite, until the standard input ends.

Requests and replies are lines of JSON. A reply has a ``status`` only where something was skipped or failed. What the
benchmarks print goes to the standard error.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import traceback
from pathlib import Path
from typing import Any

from .suite import Benchmark, Skipped, describe, discover

Reply = dict[str, Any]


class Server:
    """Holds the one benchmark that is prepared.

    Args:
        suite: folder of the suite.
        tree: the files that are to be measured.
        forbidden: other trees of the same repository, out of which no module may come.
    """

    def __init__(self, suite: Path, tree: Path, forbidden: list[Path]) -> None:
        self.suite, self.tree, self.forbidden = suite, tree, forbidden
        self.benchmarks: dict[str, Benchmark] = {}
        self.caches: dict[str, bytes] = {}
        self.current: Benchmark | None = None

    def answer(self, request: Reply) -> Reply:
        """Do what is asked."""
        try:
            return getattr(self, f"do_{request.pop('do')}")(**request)
        except (NotImplementedError, Skipped) as reason:
            return {"status": "skipped", "message": str(reason) or type(reason).__name__}
        except (Exception, SystemExit) as error:
            return {"status": "failed", "message": describe(error), "trace": traceback.format_exc(limit=-12)}

    def do_discover(self) -> Reply:
        """All benchmarks."""
        self.benchmarks, reply = discover(self.suite)
        return {**reply, "python": platform.python_version()}

    def do_prepare(self, name: str) -> Reply:
        """Set one up."""
        self.current = None
        benchmark = self.benchmarks[name]
        benchmark.prepare(self.caches)
        self.current = benchmark
        return {"number": benchmark.number}

    def do_warm(self, seconds: float) -> Reply:
        """Call it for so long; ``value`` is the seconds of one call."""
        return {"value": self._prepared().warm(seconds)}

    def do_sample(self, number: int) -> Reply:
        """One sample, of ``number`` calls if it is timed."""
        return self._prepared().sample(number)

    def do_finish(self) -> Reply:
        """Tear it down."""
        benchmark, self.current = self.current, None
        if benchmark is not None:
            benchmark.finish()
        return {}

    def do_verify(self) -> Reply:
        """Fail where a module was not taken from the tree although the tree has it."""
        for name, module in list(sys.modules.items()):
            origin = getattr(module, "__file__", None)
            if not isinstance(origin, str):
                continue
            file = Path(os.path.realpath(origin))
            for root in self.forbidden:
                inside = root in file.parents and self.tree not in file.parents
                if inside and (self.tree / file.relative_to(root)).exists():
                    message = (
                        f"expected module {name} from the measured tree, got {file}, which comes first on sys.path"
                    )
                    return {"status": "failed", "message": message}
        return {}

    def _prepared(self) -> Benchmark:
        if self.current is None:
            raise RuntimeError("expected a prepared benchmark, got none")
        return self.current


def main() -> None:
    """Serve."""
    suite, tree, *forbidden = (Path(os.path.realpath(each)) for each in sys.argv[1:])
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    # Python has put the folder of this package first; it gives way to that of the suite.
    sys.path[0] = str(suite.parent)
    server = Server(suite, tree, forbidden)
    for line in requests:
        replies.write(json.dumps(server.answer(json.loads(line))) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
