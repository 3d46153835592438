"""What is trained: tasks, families, and their registry by name. ``python -m lr_env.tasks`` lists them."""

from lr_env.tasks import builtin as _builtin  # noqa: F401  (registers the built-in tasks)
from lr_env.tasks.family import TaskFamily, as_family
from lr_env.tasks.noisy_quadratic import NoisyQuadratic
from lr_env.tasks.registry import make_task, register_task, task_names
from lr_env.tasks.task import ACCURACY, LOSSES, Data, Metric, Sampler, Split, Task

__all__ = [
    "ACCURACY",
    "LOSSES",
    "Data",
    "Metric",
    "NoisyQuadratic",
    "Sampler",
    "Split",
    "Task",
    "TaskFamily",
    "as_family",
    "make_task",
    "register_task",
    "task_names",
]
