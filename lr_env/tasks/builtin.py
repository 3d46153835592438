"""The built-in tasks."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits

from lr_env.tasks.family import TaskFamily
from lr_env.tasks.models import mlp
from lr_env.tasks.noisy_quadratic import SHIPPED_QUADRATIC
from lr_env.tasks.registry import register_task
from lr_env.tasks.task import ACCURACY, Data, Split, Task

SPLIT_SEED = 0
VALIDATION_FRACTION = TEST_FRACTION = 0.15


def _split(inputs: np.ndarray, targets: np.ndarray) -> Data:
    order = np.random.default_rng(SPLIT_SEED).permutation(len(inputs))
    num_validation, num_test = int(VALIDATION_FRACTION * len(order)), int(TEST_FRACTION * len(order))
    parts = np.split(order, [len(order) - num_validation - num_test, len(order) - num_test])
    features, labels = torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(targets.astype(np.int64))
    return Data(*(Split(features[part], labels[part]) for part in parts))


@cache
def digits() -> Data:
    """scikit-learn's bundled handwritten digits: 1,797 images of 8×8 pixels, scaled to [0, 1], 10 classes."""
    images, labels = load_digits(return_X_y=True)
    return _split(images / 16.0, labels)


@cache
def breast_cancer() -> Data:
    """scikit-learn's bundled breast cancer data: 569 tumours, 30 measurements, standardised by the training split, 2 classes."""
    measurements, labels = load_breast_cancer(return_X_y=True)
    data = _split(measurements, labels)
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
