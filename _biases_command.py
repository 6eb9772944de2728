"""The console script ``biases``: interrupted while PyTorch is imported, it says so as it does later.

A module beside the package, because importing anything of ``biases`` imports torch.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run one command; returns its exit code."""
    try:
        from biases.cli import main as run
    except KeyboardInterrupt:
        print("biases: interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
