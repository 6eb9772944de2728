"""``python -m biases``: the console script ``biases``, of the Python at hand."""

import sys

from biases.cli import main

if __name__ == "__main__":
    sys.exit(main())
