"""The asv suites: operators, layers, models, training steps and the battery. Parameters come from the zoo.

Times on the CPU are asv's own ``time_`` benchmarks. On CUDA a ``track_`` benchmark returns samples between events, in
seconds. What a machine has no device for is skipped. Lower is better, everywhere.
"""
