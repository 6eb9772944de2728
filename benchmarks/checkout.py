"""asv plugin: the environment ``checkout:same``, the running Python under a name without its path.

asv names an existing environment after the path of its interpreter, so that every checkout would begin a series of its
own and the results would carry the folders of whoever made them. In this environment, a run that is interrupted keeps
what it has measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from asv.commands import run
from asv.environment import EnvironmentUnavailable, ExistingEnvironment
from asv.util import UserError

from benchmarks.counting import environment_name, python_version


class Checkout(ExistingEnvironment):
    """The Python that runs asv, with whatever is installed in it; requirements of the matrix are not looked at."""

    tool_name = "checkout"

    def __init__(self, conf: Any, python: str, requirements: Any, tagged_env_vars: Any) -> None:
        if python != "same":
            raise EnvironmentUnavailable(f"environment {self.tool_name!r}: expected 'same', got {python!r}")
        super().__init__(conf, python, {}, {})
        self._python = python_version()
        self.results_dir = conf.results_dir

    @property
    def name(self) -> str:
        return environment_name()


def keeping(run_benchmarks: Callable[..., Any]) -> Callable[..., Any]:
    """asv saves results after its last benchmark; this also does so when that is not reached."""

    @functools.wraps(run_benchmarks)
    def kept(benchmarks: Any, env: Any, results: Any = None, **options: Any) -> Any:
        try:
            return run_benchmarks(benchmarks, env, results=results, **options)
        except (KeyboardInterrupt, UserError):
            if isinstance(env, Checkout) and results is not None:
                results.save(env.results_dir)
            raise

    return kept


run.run_benchmarks = keeping(run.run_benchmarks)
