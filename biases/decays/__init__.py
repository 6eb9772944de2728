"""How far a query reaches: biases and decays of the distance."""

from biases.decays.alibi import ALiBi, alibi_slopes
from biases.decays.exponential import ExponentialDecay, retnet_log_rates, rmt_log_rates
from biases.decays.manhattan import ManhattanDecay
from biases.decays.retention import retention_chunkwise, retention_parallel, retention_recurrent

__all__ = [
    "ALiBi",
    "ExponentialDecay",
    "ManhattanDecay",
    "alibi_slopes",
    "retention_chunkwise",
    "retention_parallel",
    "retention_recurrent",
    "retnet_log_rates",
    "rmt_log_rates",
]
