"""What runs in the measured process of one side of a comparison.

Standard library only and copied out before it runs, because the package that it measures may be any version of this
one. Run as ``python -m`` from its parent folder; see :mod:`~biases.bench.compare.child.__main__`.
"""
