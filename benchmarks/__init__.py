"""Measurements of the repository: scripts, the asv suites in :mod:`benchmarks.suites`, and their runner."""
