"""What is trained: tasks, families, and their registry by name. ``python -m lr_env.tasks`` lists them."""

from lr_env.tasks import builtin as _builtin  # noqa: F401  (registers the built-in tasks)
from lr_env.tasks.families import FamilySpecification
from lr_env.tasks.family import TaskFamily, Variant, as_family
from lr_env.tasks.noisy_quadratic import NoisyQuadratic
from lr_env.tasks.registry import make_task, register_task, task_data_sets, task_names
from lr_env.tasks.rosenbrock import Rosenbrock
from lr_env.tasks.task import ACCURACY, LOSSES, PERPLEXITY, R_SQUARED, SQUARED_ERROR, Data, Metric, Sampler, Split, Task

__all__ = [
    "ACCURACY",
    "LOSSES",
    "PERPLEXITY",
    "R_SQUARED",
    "SQUARED_ERROR",
    "Data",
    "FamilySpecification",
    "Metric",
    "NoisyQuadratic",
    "Rosenbrock",
    "Sampler",
    "Split",
    "Task",
    "TaskFamily",
    "Variant",
    "as_family",
    "make_task",
    "register_task",
    "task_data_sets",
    "task_names",
]
