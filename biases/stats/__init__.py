"""Statistics of ablations: paired comparison over seeds, 2x2 interaction, multiplicity, power.

Works on plain sequences of numbers, one per seed, and knows nothing of how they were measured. The unit of
analysis is the seed, shared by all arms. The functions that need scipy import it when called.
"""

from biases.stats.compare import interaction, mean_interval, paired
from biases.stats.families import Judged, family
from biases.stats.multiplicity import holm
from biases.stats.power import paired_power, required_seeds
from biases.stats.results import Inference, Interaction, Paired
from biases.stats.signflip import attainable_seeds, smallest_p

__all__ = [
    "Inference",
    "Interaction",
    "Judged",
    "Paired",
    "attainable_seeds",
    "family",
    "holm",
    "interaction",
    "mean_interval",
    "paired",
    "paired_power",
    "required_seeds",
    "smallest_p",
]
