"""Options, profiles and threads of the test run."""

from __future__ import annotations

import signal

import pytest
import torch

from biases.testing.profiles import load_profile

PROFILE = load_profile()


def pytest_report_header() -> str:
    return f"torch {torch.__version__}, hypothesis profile {PROFILE!r}, {torch.get_num_threads()} threads"


def pytest_configure(config: pytest.Config) -> None:
    # The tensors of the tests are far too small for threads to pay, and pytest-xdist already fills the cores.
    torch.set_num_threads(1)
    # A shell has its background jobs ignore Ctrl-C, and what they start inherits that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="takes over ten seconds: run with --run-slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))
