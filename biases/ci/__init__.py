"""``biases ci``: the battery and the comparison with a base revision, in one command with reports for CI systems."""
