"""Tasks and families by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from lr_env.checks import unknown_name
from lr_env.isolation import isolated
from lr_env.tasks.datasets import DATASETS
from lr_env.tasks.family import TaskFamily
from lr_env.tasks.task import Task

_FACTORIES: dict[str, Callable[[], Task | TaskFamily]] = {}
_DATA_SETS: dict[str, tuple[str, ...]] = {}


def register_task(name: str, factory: Callable[[], Task | TaskFamily], data_sets: tuple[str, ...] = (), *, replace: bool = False) -> None:
    """Makes ``factory()`` known as ``name``, for ``gym.make("LearningRate-v0", task=name)``.

    Args:
        name: Of the task.
        factory: Called when the task is first used.
        data_sets: Names of the :data:`lr_env.tasks.datasets.DATASETS` that ``factory`` loads, so that it can be known without a download
            whether they are at hand.
        replace: Whether it may take the place of another one of this name.

    Raises:
        TypeError: If the factory can't be called.
        ValueError: If the name is taken or a data set is unknown.
    """
    if not callable(factory):
        raise TypeError(f"register_task(name, factory) needs a function that makes the task, but {factory!r} was given: pass lambda: task.")
    if name in _FACTORIES and not replace:
        raise ValueError(f"A task named {name!r} is registered already: choose another name, or pass replace=True.")
    for data_set in data_sets:
        if data_set not in DATASETS:
            raise unknown_name("data set", data_set, DATASETS)
    _FACTORIES[name], _DATA_SETS[name] = factory, data_sets
    make_task.cache_clear()


@cache
@isolated()
def make_task(name: str) -> Task | TaskFamily:
    """The task or family of this name; one object per name and process.

    Raises:
        ValueError: If the name is unknown; the message lists the valid ones.
    """
    if name not in _FACTORIES:
        raise unknown_name("task", name, _FACTORIES)
    return _FACTORIES[name]()


def task_names() -> list[str]:
    """All registered names, sorted."""
    return sorted(_FACTORIES)


def task_data_sets(name: str) -> tuple[str, ...]:
    """The data sets that the task of this name was registered with.

    Raises:
        ValueError: If the name is unknown; the message lists the valid ones.
    """
    if name not in _DATA_SETS:
        raise unknown_name("task", name, _DATA_SETS)
    return _DATA_SETS[name]
