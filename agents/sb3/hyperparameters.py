"""Hyperparameters of Stable-Baselines3's algorithms that suit many short trainings side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lr_env.checks import positive_integer, unknown_name
from stable_baselines3.common.policies import BasePolicy

from agents.sb3.policies import CalmSACPolicy, CalmTD3Policy, CorrelatedActionNoise

LONGEST_ROLLOUT = 128
"""Decisions of a member in a rollout of PPO at most: trainings may be of 10,000."""


def default_policy(algorithm: str) -> str | type[BasePolicy]:
    """First argument of an SB3 algorithm's constructor: ``"MlpPolicy"``, for off-policy algorithms with an actor a calm one.

    Raises:
        ValueError: If the algorithm is unknown.
    """
    if algorithm not in _HYPERPARAMETERS:
        raise unknown_name("algorithm", algorithm, _HYPERPARAMETERS)
    calm: Mapping[str, type[BasePolicy]] = {"ddpg": CalmTD3Policy, "sac": CalmSACPolicy, "td3": CalmTD3Policy}
    return calm.get(algorithm, "MlpPolicy")


def default_hyperparameters(algorithm: str, num_envs: int, decisions: int = 100, is_family: bool = False) -> dict[str, Any]:
    """Arguments of an SB3 algorithm's constructor, after :func:`default_policy` and ``env``, that suit many short trainings side by side.

    SB3's own defaults are for one environment: PPO's ``n_steps=2048`` would be 131,072 transitions a rollout with 64 members. Here a
    rollout of PPO is one training of each member, or 128 decisions of longer ones; off-policy algorithms learn after every step of all
    members. The discount is 1 − 1 / (10 · decisions): a smaller one prefers rates that are far too small (Wu et al. 2018).

    DDPG, TD3 and SAC differ from what their papers publish, and SB3 with them, beside the policy in: random actions for one whole training
    of each member at first; an update for every 16 members' decisions; returns of 5 decisions, as one hardly shows in the next loss;
    exploration that is correlated over decisions, for SAC beside its own; a rate of 5e-4, between those of TD3 and SAC; for TD3 an actor
    that follows at a quarter of the critic's pace, with targets as slow as published; for SAC a first weight of the entropy of 0.001, as
    rewards are small: at 1, or 0.01, a training's entropy counts as much as what it learns.

    PPO, A2C and DQN differ in less. PPO and A2C explore with noise of 0.37 at first, as an action may move the rate by half a decade. PPO has a
    rate of 1e-3 and λ = 0.98, as rollouts are long; A2C, which was not tuned, rollouts of 10 decisions, λ = 0.95, normalised advantages and
    Adam at 1e-3 (SB3: 5, 1, none and RMSprop at 7e-4); DQN 20 % of random actions at first and 2 % at last, as many in a row end a training.

    Args:
        algorithm: ``"a2c"``, ``"ddpg"``, ``"dqn"`` (for ``action="discrete"``), ``"ppo"``, ``"sac"`` or ``"td3"``.
        num_envs: N; for 16 to 256.
        decisions: Decisions of one training, ``horizon / steps_per_action``; of a family, of the longest.
        is_family: Whether the trainings are a family's: millions of steps of many kinds of trainings, for which PPO explores less and
            makes fewer passes over a rollout.

    Raises:
        ValueError: If the algorithm is unknown or a number is no integer >= 1.
    """
    num_envs, decisions = positive_integer("num_envs", num_envs), positive_integer("decisions", decisions)
    if algorithm not in _HYPERPARAMETERS:
        raise unknown_name("algorithm", algorithm, _HYPERPARAMETERS)
    common = {"gamma": 1 - 1 / (10 * decisions), "device": "cpu"}
    hyperparameters = common | _HYPERPARAMETERS[algorithm](num_envs, decisions)
    if is_family and algorithm == "ppo":
        hyperparameters |= {"n_epochs": 4, "policy_kwargs": {"net_arch": [64, 64], "log_std_init": -1.5}}
    return hyperparameters


def _ppo(num_envs: int, decisions: int) -> dict[str, Any]:
    n_steps = min(decisions, LONGEST_ROLLOUT)
    size = num_envs * n_steps
    num_batches = next(count for count in range(8, 0, -1) if size % count == 0)  # SB3 warns of a smaller one at the end
    return {
        "n_steps": n_steps,
        "batch_size": max(2, size // num_batches),
        "n_epochs": 10,
        "learning_rate": 1e-3,
        "gae_lambda": 0.98,
        "policy_kwargs": {"net_arch": [64, 64], "log_std_init": -1.0},
    }


def _a2c(num_envs: int, decisions: int) -> dict[str, Any]:
    return {
        "n_steps": 10,
        "learning_rate": 1e-3,
        "gae_lambda": 0.95,
        "use_rms_prop": False,
        "normalize_advantage": True,
        "policy_kwargs": {"net_arch": [64, 64], "log_std_init": -1.0},
    }


def _off_policy(num_envs: int, decisions: int) -> dict[str, Any]:
    return {
        "learning_rate": 1e-3,
        "buffer_size": 500_000,
        "learning_starts": 20 * num_envs,
        "batch_size": 256,
        "train_freq": 1,
        "gradient_steps": max(1, num_envs // 16),
        "policy_kwargs": {"net_arch": [64, 64]},
    }


def _ddpg(num_envs: int, decisions: int) -> dict[str, Any]:
    return _off_policy(num_envs, decisions) | {
        "learning_rate": 5e-4,
        "learning_starts": num_envs * min(decisions, LONGEST_ROLLOUT),
        "n_steps": 5,
        "action_noise": CorrelatedActionNoise(num_envs),
    }


def _sac(num_envs: int, decisions: int) -> dict[str, Any]:
    return _ddpg(num_envs, decisions) | {"ent_coef": "auto_0.001"}


def _td3(num_envs: int, decisions: int) -> dict[str, Any]:
    return _ddpg(num_envs, decisions) | {"policy_delay": 4, "tau": 0.02}


def _dqn(num_envs: int, decisions: int) -> dict[str, Any]:
    return _off_policy(num_envs, decisions) | {
        "target_update_interval": 50 * num_envs,
        "exploration_fraction": 0.2,
        "exploration_initial_eps": 0.2,
        "exploration_final_eps": 0.02,
    }


_HYPERPARAMETERS: Mapping[str, Callable[[int, int], dict[str, Any]]] = {
    "a2c": _a2c,
    "ddpg": _ddpg,
    "dqn": _dqn,
    "ppo": _ppo,
    "sac": _sac,
    "td3": _td3,
}

ALGORITHMS = tuple(_HYPERPARAMETERS)
"""Names of the algorithms."""
