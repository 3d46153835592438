"""lr-env: learning-rate control as a reinforcement-learning environment.

``import lr_env`` registers ``LearningRate-v0`` with Gymnasium.
"""

import importlib.util
import warnings
from pathlib import Path

import gymnasium as gym

from lr_env.controllers import BoundController, Controller, OnlineController, PolicyNetwork, SharedGroupController, load_controller, save_controller
from lr_env.env import LearningRateEnv
from lr_env.files import FileFormatError
from lr_env.mdp import MDP
from lr_env.recurrent import RecurrentPolicy
from lr_env.scheduler import ControllerLR
from lr_env.tasks import FamilySpecification, NoisyQuadratic, Task, TaskFamily, Variant, make_task, register_task, task_names
from lr_env.vector_env import LearningRateVectorEnv

__all__ = [
    "MDP",
    "BoundController",
    "Controller",
    "ControllerLR",
    "FamilySpecification",
    "FileFormatError",
    "LearningRateEnv",
    "LearningRateVectorEnv",
    "NoisyQuadratic",
    "OnlineController",
    "PolicyNetwork",
    "RecurrentPolicy",
    "SharedGroupController",
    "Task",
    "TaskFamily",
    "Variant",
    "load_controller",
    "make_task",
    "register_task",
    "save_controller",
    "task_names",
]
__version__ = "0.1.0"

gym.register(
    id="LearningRate-v0",
    entry_point="lr_env.env:LearningRateEnv",
    vector_entry_point="lr_env.vector_env:LearningRateVectorEnv",
)


def _warn_if_agents_are_shadowed() -> None:
    """Other distributions bring a package named ``agents`` too; found first, theirs would be imported in place of ours."""
    try:
        spec = importlib.util.find_spec("agents")  # looks for the package without importing it
        if spec is None or spec.origin is None or "from agents.ddpg import DDPG" in Path(spec.origin).read_text(encoding="utf-8", errors="replace"):
            return
    except (OSError, ValueError):  # in an archive, or made by hand: nothing that can be looked into
        return
    warnings.warn(
        f"lr-env's package `agents` is shadowed by another distribution's, {spec.origin}: `from agents import DDPG` will fail. "
        "Install lr-env in a virtual environment of its own, or uninstall the other distribution.",
        stacklevel=2,
    )


_warn_if_agents_are_shadowed()
