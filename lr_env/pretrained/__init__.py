"""The controllers that the package brings, one for each kind of optimizer; README.md beside this file is their model card."""

from __future__ import annotations

from pathlib import Path

import torch

from lr_env.controllers import BoundController, load_controller

FILES: tuple[tuple[tuple[type[torch.optim.Optimizer], ...], str], ...] = (
    ((torch.optim.SGD,), "momentum.safetensors"),
    ((torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam), "adamw.safetensors"),
)
"""Kinds of optimizers, and the file of their controller in this folder."""


def load_pretrained(optimizer: torch.optim.Optimizer) -> BoundController:
    """The controller for an optimizer of this kind.

    Args:
        optimizer: SGD, with momentum or without, Adam, AdamW or NAdam.

    Raises:
        ValueError: If there is none for it.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # frameworks put optimizers into others
    for kinds, file in FILES:
        if isinstance(inner, kinds):
            return load_controller(Path(__file__).parent / file)
    known = ", ".join(kind.__name__ for kinds, _ in FILES for kind in kinds)
    raise ValueError(
        f"There are pretrained controllers for {known}, but {type(optimizer).__name__} was given. Give the file of one that you trained by lr-train."
    )
