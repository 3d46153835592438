"""N target models trained side by side: their gradients, optimizers and batches. Knows nothing of Gymnasium."""

from lr_env.training.optimizers import (
    OPTIMIZERS,
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    Lion,
    NAdamW,
    Optimizer,
    OptimizerSpecification,
    RateDefaults,
    RMSprop,
    make_optimizer,
)
from lr_env.training.parameter_groups import check_groups, parameter_groups
from lr_env.training.population import Evaluation, Population, draw_subset
from lr_env.training.signals import SIGNALS, signal_rows
from lr_env.training.torch_optimizers import TorchOptimizer

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
    "OptimizerSpecification",
    "Population",
    "RMSprop",
    "RateDefaults",
    "TorchOptimizer",
    "check_groups",
    "draw_subset",
    "make_optimizer",
    "parameter_groups",
    "signal_rows",
]
