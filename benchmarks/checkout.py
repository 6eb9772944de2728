"""asv plugin: the environment ``checkout:same``, the running Python under a name without its path.

asv names an existing environment after the path of its interpreter, so that every checkout would begin a series of its
own and the results would carry the folders of whoever made them.
"""

from __future__ import annotations

from typing import Any

from asv.environment import EnvironmentUnavailable, ExistingEnvironment

from benchmarks.counting import environment_name, python_version


class Checkout(ExistingEnvironment):
    """The Python that runs asv, with whatever is installed in it; requirements of the matrix are not looked at."""

    tool_name = "checkout"

    def __init__(self, conf: Any, python: str, requirements: Any, tagged_env_vars: Any) -> None:
        if python != "same":
            raise EnvironmentUnavailable(f"environment {self.tool_name!r}: expected 'same', got {python!r}")
        super().__init__(conf, python, {}, {})
        self._python = python_version()

    @property
    def name(self) -> str:
        return environment_name()
