"""The main job, small: verify, benchmark, ablate and report, on real text, in a few minutes on two cores."""

from biases.demo.run import Demo, run_demo

__all__ = ["Demo", "run_demo"]
