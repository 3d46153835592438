"""The built-in tasks."""

from __future__ import annotations

from functools import partial

from lr_env.tasks.datasets import breast_cancer, digits
from lr_env.tasks.family import TaskFamily
from lr_env.tasks.models import mlp
from lr_env.tasks.noisy_quadratic import SHIPPED_QUADRATIC
from lr_env.tasks.registry import register_task
from lr_env.tasks.task import ACCURACY, Task


def _digits_mlp() -> Task:
    return Task("digits-mlp", partial(mlp, 64, (32,), 10), "cross_entropy", digits(), batch_size=64, metric=ACCURACY)


def _digits_logreg() -> Task:
    return Task("digits-logreg", partial(mlp, 64, (), 10), "cross_entropy", digits(), batch_size=64, metric=ACCURACY)


def _breast_cancer_mlp() -> Task:
    return Task("breast-cancer-mlp", partial(mlp, 30, (16,), 2), "cross_entropy", breast_cancer(), batch_size=32, metric=ACCURACY)


def _digits_mlp_scaled() -> TaskFamily:
    # No single rate suits inputs whose scale varies over one and a half decades.
    return TaskFamily("digits-mlp-scaled", _digits_mlp(), input_scale_decades=(-0.75, 0.75))


register_task("digits-mlp", _digits_mlp)
register_task("digits-logreg", _digits_logreg)
register_task("breast-cancer-mlp", _breast_cancer_mlp)
register_task("digits-mlp-scaled", _digits_mlp_scaled)
register_task("noisy-quadratic", SHIPPED_QUADRATIC.task)
