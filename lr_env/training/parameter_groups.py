"""Parameter groups: which of a model's parameters share a learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from lr_env.checks import unknown_name

GROUPINGS = ("global", "layer", "tensor")
Grouping: TypeAlias = str | Sequence[Sequence[str]]


def check_groups(grouping: Grouping) -> None:
    """Checks what can be checked without a model.

    Raises:
        TypeError: If it is neither a name nor lists of names.
        ValueError: If the name is unknown, or a group or all of it is empty.
    """
    if isinstance(grouping, str):
        if grouping not in GROUPINGS:
            raise unknown_name("lr_groups", grouping, GROUPINGS)
        return
    if not isinstance(grouping, (list, tuple)) or any(isinstance(group, str) or not isinstance(group, (list, tuple)) for group in grouping):
        raise TypeError(f"lr_groups must be one of {', '.join(map(repr, GROUPINGS))}, or lists of parameter names, but {grouping!r} was given.")
    if not grouping or any(len(group) == 0 for group in grouping):
        raise ValueError(f"lr_groups must be lists of at least one parameter name each, but {grouping!r} was given.")


def parameter_groups(grouping: Grouping, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The groups of a model's parameters, ``(G,)``, each the names of its parameters in the model's order.

    Args:
        grouping: ``"global"`` for one group; ``"layer"`` for one of each module that holds parameters of its own, in the model's order;
            ``"tensor"`` for one of each parameter, in the model's order; or lists of parameter names, in the order given.
        names: All parameters, in the model's order.

    Raises:
        TypeError: If the grouping is neither a name nor lists of names.
        ValueError: If a name is unknown, stands in two groups or in none.
    """
    check_groups(grouping)
    if grouping == "global":
        return (tuple(names),)
    if grouping == "tensor":
        return tuple((name,) for name in names)
    if grouping == "layer":
        layers: dict[str, list[str]] = {}
        for name in names:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
        return tuple(tuple(layer) for layer in layers.values())
    chosen = [name for group in grouping for name in group]
    for name in chosen:
        if name not in names:
            raise unknown_name("parameter in lr_groups", name, names)
        if chosen.count(name) > 1:
            raise ValueError(f"Parameter {name!r} stands in lr_groups more than once.")
    if missing := [name for name in names if name not in chosen]:
        raise ValueError(f"lr_groups must name every parameter, but leaves out {', '.join(missing)}.")
    return tuple(tuple(name for name in names if name in group) for group in grouping)
