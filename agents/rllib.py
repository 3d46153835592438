"""Trains RLlib's PPO on learning rates, across machines: ``python -m agents.rllib --optimizer momentum --address auto --env-runners 16``.

Each environment runner, a process with one core of any machine of the cluster, has ``LearningRate-v0``'s vector environment with trainings
of its own side by side; one learner, beside this process, makes the updates. The result is a controller's file, which needs no Ray:
``lr-bench run --controllers rllib=results/rllib/controller.safetensors``.

RLlib pins a Gymnasium of its own, so that it needs a virtual environment of its own: ``pip install 'lr-env[rllib]'``. Every machine of the
cluster needs the same; this project's code goes with the work.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lr_env
import numpy as np
import torch
from lr_env.checks import positive_integer
from lr_env.controllers import BoundController, PolicyNetwork, save_controller
from lr_env.seeding import check_seed
from lr_env.vector_env import LearningRateVectorEnv
from torch import nn

import agents

try:
    import ray
    import tyro
    from ray.rllib.algorithms.ppo import PPO, PPOConfig
    from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.tune.registry import register_env
    from tqdm import tqdm

    from agents.ray_cluster import connect
except ImportError as error:
    raise ImportError(f"agents.rllib needs a virtual environment of its own with RLlib: pip install 'lr-env[rllib]' ({error}).") from error

HIDDEN = (64, 64)
LOG_STD = -1.0
"""Of the first actions' noise, in log."""

LONGEST_ROLLOUT = 128
"""Decisions of a member between updates at most."""


@dataclass(frozen=True)
class Options:
    """Options of a training."""

    task: str = "digits-mlp-scaled"
    """Registered name of a task or family; ``python -m lr_env.tasks`` lists them."""
    horizon: int | None = None
    """SGD steps of a training; by default the task's, or each variant's own."""
    optimizer: str = "sgd"
    """Whose rate is controlled."""
    iterations: int = 50
    """Rollouts, each with its updates."""
    env_runners: int = 2
    """Processes that take the trainings' steps, each with one core of the cluster; one more is needed for this process."""
    num_envs: int = 32
    """Trainings side by side in each of them."""
    address: str | None = None
    """Of the cluster: HOST:PORT or auto; the variable RAY_ADDRESS, else this machine alone, where not given."""
    seed: int = 0
    """Of everything; runs are repeatable as far as RLlib's are."""
    output: Path = Path("results/rllib/controller.safetensors")
    """The controller's file."""


class RunnerEnv(LearningRateVectorEnv):
    """The vector environment where several runners have seeds s, s + 1, …: the members of no two of them have the same trainings."""

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Member i of N has seed N · s + i."""
        return super().reset(seed=seed * self.num_envs if isinstance(seed, int) else seed, options=options)


class CalmPPOModule(DefaultPPOTorchRLModule):  # type: ignore[misc]
    """PPO's networks, whose first actions are near 0: with RLlib's noise, the first trainings would all diverge."""

    def setup(self) -> None:
        """Builds the networks."""
        super().setup()
        nn.init.constant_(self.pi.log_std, LOG_STD)
        nn.init.uniform_(linear_layers(self.pi)[-1].weight, -3e-3, 3e-3)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; exits with 2 and a message where something that was given is wrong.

    Args:
        arguments: Of the command line; None for the process's.
    """
    options = tyro.cli(Options, args=None if arguments is None else list(arguments), prog="agents.rllib", description=__doc__)
    torch.set_num_threads(1)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    try:
        bound = train(options)
    except (ValueError, TypeError, OSError) as error:
        print(f"agents.rllib: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_controller(options.output, bound)
    tqdm.write(f"Written: {options.output}")


def train(options: Options) -> BoundController:
    """Trains; returns the last policy.

    Raises:
        ValueError: If an option is wrong.
        TypeError: If an option has the wrong type.
        ConnectionError: If the cluster can't be reached.
    """
    for name in ("iterations", "env_runners", "num_envs"):
        positive_integer(name, getattr(options, name))
    check_seed(options.seed)
    environment = {"task": options.task, "horizon": options.horizon, "optimizer": options.optimizer}
    with_one = LearningRateVectorEnv(1, **environment)  # type: ignore[arg-type]
    decisions = int(with_one.episodes.horizons.max())
    connect((agents, lr_env), options.address, options.env_runners + 1)
    try:
        algorithm: PPO = configure(options, environment, decisions).build_algo()
        with tqdm(range(options.iterations), desc="PPO", unit=" rollouts") as bar:
            for _ in bar:
                result = algorithm.train()
                bar.set_postfix(mean_return=f"{result['env_runners'].get('episode_return_mean', np.nan):.3g}")
        bound = BoundController(export_policy(algorithm.get_module()), with_one.mdp)
        algorithm.stop()
    finally:
        ray.shutdown()
    return bound


def configure(options: Options, environment: Mapping[str, Any], decisions: int) -> PPOConfig:
    """RLlib's configuration: what :func:`agents.sb3.default_hyperparameters` has for PPO.

    Args:
        options: Of the training.
        environment: Arguments of the vector environment.
        decisions: Of one training.
    """
    register_env("LearningRate-v0", lambda context: RunnerEnv(context["num_envs"], **environment))
    rollout = min(decisions, LONGEST_ROLLOUT)
    batch_size = options.env_runners * options.num_envs * rollout
    network = DefaultModelConfig(fcnet_hiddens=list(HIDDEN), fcnet_activation="tanh", vf_share_layers=False, free_log_std=True)
    return (
        PPOConfig()
        .environment("LearningRate-v0")
        .env_runners(
            num_env_runners=options.env_runners,
            num_envs_per_env_runner=options.num_envs,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=rollout,
        )
        .learners(num_learners=0)
        .training(
            gamma=1 - 1 / (10 * decisions),
            lambda_=0.98,
            lr=1e-3,
            train_batch_size_per_learner=batch_size,
            minibatch_size=max(2, batch_size // 8),
            num_epochs=10,
            clip_param=0.2,
            vf_clip_param=float("inf"),
            use_kl_loss=False,
            grad_clip=0.5,
            grad_clip_by="global_norm",
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=CalmPPOModule, model_config=network))
        .debugging(seed=options.seed, log_level="ERROR")
    )


def export_policy(module: Any) -> PolicyNetwork:
    """The policy of a :class:`CalmPPOModule`: the mean action, clipped to [−1, 1]."""
    layers = [*linear_layers(module.encoder.actor_encoder), *linear_layers(module.pi)]
    network = PolicyNetwork(layers[0].in_features, layers[-1].out_features, [layer.out_features for layer in layers[:-1]], 0, "tanh", "clip")
    for target, source in zip(linear_layers(network), layers, strict=True):
        target.load_state_dict(source.state_dict())
    return network


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """In their order."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


if __name__ == "__main__":
    main()
