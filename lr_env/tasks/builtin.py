"""The built-in tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from lr_env.tasks.datasets import DATASETS, digits, mnist
from lr_env.tasks.family import TaskFamily
from lr_env.tasks.models import CharacterTransformer, cnn, image_mlp, mlp, resnet
from lr_env.tasks.noisy_quadratic import SHIPPED_QUADRATIC
from lr_env.tasks.registry import register_task
from lr_env.tasks.rosenbrock import Rosenbrock
from lr_env.tasks.task import ACCURACY, PERPLEXITY, R_SQUARED, SQUARED_ERROR, Data, Metric, Split, Task

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
"""Shapes of the images of MNIST and Fashion-MNIST, and of CIFAR-10: channels, height and width."""

CHARACTERS, CONTEXT = 65, 32
"""Of tiny Shakespeare: how many different ones there are, and how many a model sees."""


def _register(
    name: str,
    data_set: str,
    model: Callable[[], nn.Module],
    batch_size: int,
    horizon: int,
    loss: str = "cross_entropy",
    metric: Metric = ACCURACY,
) -> None:
    def make() -> Task:
        return Task(name, model, loss, DATASETS[data_set](), batch_size, horizon, metric=metric)

    register_task(name, make, (data_set,))


def _digits_mlp_scaled() -> TaskFamily:
    # No single rate suits inputs whose scale varies over one and a half decades.
    task = Task("digits-mlp", partial(mlp, 64, (32,), 10), "cross_entropy", digits(), batch_size=64, metric=ACCURACY)
    return TaskFamily("digits-mlp-scaled", task, input_scale_decades=(-0.75, 0.75))


def _mnist_autoencoder() -> Task:
    images = mnist()
    parts = (Split(part.inputs, part.inputs.flatten(1)) for part in (images.train, images.validation, images.test))
    model = partial(image_mlp, GREY, (128, 16, 128), 28 * 28)
    return Task("mnist-autoencoder", model, "mean_squared_error", Data(*parts), batch_size=64, horizon=500, metric=SQUARED_ERROR)


_register("digits-mlp", "digits", partial(mlp, 64, (32,), 10), 64, 100)
_register("digits-logreg", "digits", partial(mlp, 64, (), 10), 64, 100)
_register("breast-cancer-mlp", "breast-cancer", partial(mlp, 30, (16,), 2), 32, 100)
_register("wine-mlp", "wine", partial(mlp, 13, (16,), 3), 16, 100)
_register("diabetes-mlp", "diabetes", partial(mlp, 10, (16,), 1), 32, 100, "mean_squared_error", R_SQUARED)
_register("mnist-mlp", "mnist", partial(image_mlp, GREY, (128,), 10), 64, 500)
_register("mnist-cnn", "mnist", partial(cnn, GREY, (8, 16), 10), 64, 500)
_register("fashion-mlp", "fashion-mnist", partial(image_mlp, GREY, (128,), 10), 64, 500)
_register("fashion-cnn", "fashion-mnist", partial(cnn, GREY, (8, 16), 10), 64, 500)
_register("cifar10-cnn", "cifar10", partial(cnn, COLOUR, (16, 32, 64), 10), 64, 1000)
_register("cifar10-resnet", "cifar10", partial(resnet, COLOUR, (16, 32, 64), 10), 64, 1000)
_register("shakespeare-transformer", "tinyshakespeare", partial(CharacterTransformer, CHARACTERS, CONTEXT, 64, 4, 2), 32, 500, metric=PERPLEXITY)
register_task("digits-mlp-scaled", _digits_mlp_scaled, ("digits",))
register_task("mnist-autoencoder", _mnist_autoencoder, ("mnist",))
register_task("noisy-quadratic", SHIPPED_QUADRATIC.task)
register_task("rosenbrock", Rosenbrock().task)
