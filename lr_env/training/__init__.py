"""N target models trained side by side: their gradients, optimizers and batches. Knows nothing of Gymnasium."""

from lr_env.training.optimizers import OPTIMIZERS, SGD, Adam, Optimizer, RateDefaults, make_optimizer
from lr_env.training.population import SIGNALS, Evaluation, Population, signal_rows

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "SIGNALS",
    "Adam",
    "Evaluation",
    "Optimizer",
    "Population",
    "RateDefaults",
    "make_optimizer",
    "signal_rows",
]
