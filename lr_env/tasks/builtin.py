"""The built-in tasks."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import torch

from lr_env.tasks.family import TaskFamily
from lr_env.tasks.models import mlp
from lr_env.tasks.noisy_quadratic import SHIPPED_QUADRATIC
from lr_env.tasks.registry import register_task
from lr_env.tasks.task import ACCURACY, Data, Split, Task


def _examples(inputs: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))


@cache
def digits() -> Data:
    """scikit-learn's bundled handwritten digits: 1,797 images of 8×8 pixels, scaled to [0, 1], 10 classes."""
    from sklearn.datasets import load_digits  # here, as it takes as long to import as PyTorch

    images, labels = load_digits(return_X_y=True)
    return _examples(images / 16.0, labels).divide()


@cache
def breast_cancer() -> Data:
    """scikit-learn's bundled breast cancer data: 569 tumours, 30 measurements, standardised by the training split, 2 classes."""
    from sklearn.datasets import load_breast_cancer

    measurements, labels = load_breast_cancer(return_X_y=True)
    data = _examples(measurements, labels).divide()
    mean, deviation = data.train.inputs.mean(0), data.train.inputs.std(0)
    return Data(*(Split((part.inputs - mean) / deviation, part.targets) for part in (data.train, data.validation, data.test)))


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
