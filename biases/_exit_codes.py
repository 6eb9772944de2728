"""Exit codes of every command of the console script ``biases``."""

OK = 0
FAILED = 1
USAGE = 2
"""Bad usage or bad input."""
NOTHING = 3
"""Nothing was checked, measured or done."""
INTERRUPTED = 130
