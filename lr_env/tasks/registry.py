"""Tasks and families by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from lr_env.checks import unknown_name
from lr_env.tasks.family import TaskFamily
from lr_env.tasks.task import Task

_FACTORIES: dict[str, Callable[[], Task | TaskFamily]] = {}


def register_task(name: str, factory: Callable[[], Task | TaskFamily]) -> None:
    """Makes ``factory()`` known as ``name``, for ``gym.make("LearningRate-v0", task=name)``.

    Raises:
        ValueError: If the name is taken.
    """
    if name in _FACTORIES:
        raise ValueError(f"A task named {name!r} is registered already; choose another name.")
    _FACTORIES[name] = factory


@cache
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
