"""N target models trained side by side: their gradients, optimizers and batches. Knows nothing of Gymnasium."""

from lr_env.training.optimizers import OPTIMIZERS, SGD, AdaGrad, Adam, AdamW, Lion, NAdamW, Optimizer, RateDefaults, RMSprop, make_optimizer
from lr_env.training.population import SIGNALS, Evaluation, Population, signal_rows

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "SIGNALS",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Evaluation",
    "Lion",
    "NAdamW",
    "Optimizer",
    "Population",
    "RMSprop",
    "RateDefaults",
    "make_optimizer",
    "signal_rows",
]
