"""DACBench's SGD environment on a task of ours, for the table of throughput.

DACBench (Eimer et al. 2021) is the environment for learning rates that others compare with. Its optimizer is AdamW, whatever is asked for.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils.data import TensorDataset

from lr_env import Task

NAME = "ours"


def make_dacbench_env(task: Task, horizon: int, seed: int) -> Any:
    """An environment of DACBench that trains a classifier, and whose episodes have so many SGD steps: one for each action.

    Raises:
        ModuleNotFoundError: If DACBench is not installed.
    """
    with _torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its other benchmarks, and its spaces
        from dacbench.abstract_benchmark import objdict  # here, as it is no dependency of ours
        from dacbench.benchmarks.sgd_benchmark import SGD_DEFAULTS
        from dacbench.envs import env_utils
        from dacbench.envs.sgd import SGDEnv, SGDInstance

        train, validation, test = (task.data.split(name) for name in ("train", "validation", "test"))
        together = torch.cat([train.inputs, validation.inputs]), torch.cat([train.targets, validation.targets])
        # It takes a data set of torchvision by its name.
        sets = {True: TensorDataset(*together), False: TensorDataset(test.inputs, test.targets)}
        env_utils.sgd_utils.datasets = SimpleNamespace(**{NAME: lambda path, train, **options: sets[train]})
        instance = SGDInstance(
            model=partial(_with_log_softmax, task),
            optimizer_type=torch.optim.AdamW,
            optimizer_params={},
            dataset_path="",
            dataset_name=NAME,
            batch_size=task.batch_size,
            fraction_of_dataset=1.0,
            train_validation_ratio=len(train) / len(together[0]),
            seed=seed,
        )
        transforms = {NAME: {"train_transform": None, "test_transform": None}}
        own = {"instance_set": {0: instance}, "epoch_mode": False, "cutoff": horizon, "dataset_config": transforms, "seed": seed}
        return SGDEnv(objdict({**SGD_DEFAULTS, **own}))


def _with_log_softmax(task: Task) -> nn.Module:
    """Its loss is that of log-probabilities."""
    return nn.Sequential(task.initialise(), nn.LogSoftmax(1))


@contextmanager
def _torchvision() -> Iterator[None]:
    """Where torchvision is not installed, an empty one while DACBench is imported: it is there for data sets, and ours are used."""
    if "torchvision" in sys.modules or find_spec("torchvision") is not None:
        yield
        return
    module: Any = ModuleType("torchvision")
    module.__spec__, module.datasets, module.transforms = mock.Mock(), mock.Mock(), mock.Mock()
    sys.modules["torchvision"] = module
    try:
        yield
    finally:
        del sys.modules["torchvision"]
