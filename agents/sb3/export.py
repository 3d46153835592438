"""Stable-Baselines3's policies as controllers that need no Stable-Baselines3."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import stable_baselines3
from lr_env.checks import unknown_name
from lr_env.controllers import Activation, BoundController, Output, PolicyNetwork
from lr_env.mdp import MDP
from lr_env.seeding import preserved_global_generators
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from agents.sb3.hyperparameters import ALGORITHMS
from agents.sb3.policies import CalmSACPolicy, CalmTD3Policy


def export_policy(model: BaseAlgorithm, mdp: MDP) -> BoundController:
    """An MLP policy of SB3's PPO, A2C, SAC, TD3, DDPG or DQN as a network of its own, equal to the model's deterministic ``predict``.

    Args:
        model: Trained with ``"MlpPolicy"``. Of a loaded SAC, TD3, DDPG or DQN nobody knows whether VecNormalize was there: it must not.
        mdp: The decision process that it was trained in.

    Returns:
        A controller that :func:`lr_env.save_controller` can save; it shares nothing with the model.

    Raises:
        ValueError: If the policy is of another kind, was trained on normalised observations, or does not fit the decision process.
    """
    policy, normaliser = model.policy, model.get_vec_normalize_env()
    if normaliser is None and isinstance(model, OnPolicyAlgorithm) and model._last_original_obs is not None:
        raise ValueError(
            "The model was trained with VecNormalize, but it does not know any more whether that normalised observations, which a controller does "
            "not see. Load it with env=, the VecNormalize that it was trained with, and pass it to export_policy(); or train without."
        )
    if normaliser is not None and normaliser.norm_obs:
        raise ValueError(
            "The model was trained on VecNormalize's observations, which a controller does not see; the environment's need no normalisation. "
            "Train with VecNormalize(norm_obs=False), or without it."
        )
    if model.use_sde:
        raise ValueError("A policy with state-dependent exploration (use_sde=True) can't be exported. Train with use_sde=False.")
    if type(policy) not in _PARTS:  # subclasses may compute anything
        kinds = ", ".join(sorted(kind.__name__ for kind in _PARTS))
        raise ValueError(f'Only SB3\'s MLP policies ({kinds}) can be exported, but {type(policy).__name__} was given. Train with "MlpPolicy".')
    extractor, modules, is_bounded = _PARTS[type(policy)](policy)
    if type(extractor) is not FlattenExtractor:
        raise ValueError(f"Only policies without a features extractor of their own can be exported, but this one has a {type(extractor).__name__}.")
    is_discrete = isinstance(model.action_space, gym.spaces.Discrete)
    if not is_discrete and not is_unit_box(model.action_space):
        raise ValueError(f"Only policies with actions in [-1, 1] or choices can be exported, but this one's space is {model.action_space}.")
    network = _policy_network(modules, "argmax" if is_discrete else "tanh" if is_bounded else "clip")
    _check_spaces(model, mdp)
    return BoundController(network, mdp)


def _check_spaces(model: BaseAlgorithm, mdp: MDP) -> None:
    """Refuses a decision process whose spaces are not the model's; with several groups of rates only the task knows how many there are.

    Raises:
        ValueError: If they differ.
    """
    process = mdp.begin(1, 1, 0.0)
    found, expected = (model.observation_space, model.action_space), (process.observation_space, process.action_space)
    if mdp.lr_groups == "global" and found != expected:
        raise ValueError(f"The model's spaces {found} are not those of the decision process, {expected}. Give the one that it was trained in.")


def _policy_network(modules: Sequence[nn.Module], output: Output) -> PolicyNetwork:
    """A copy of linear layers with the same activation between all of them.

    Raises:
        ValueError: If they are anything else.
    """
    linear, between = modules[::2], modules[1::2]
    kinds = {type(activation) for activation in between} or {nn.ReLU}
    activations: dict[type[nn.Module], Activation] = {nn.ReLU: "relu", nn.Tanh: "tanh"}
    if len(kinds) > 1 or not kinds <= set(activations) or any(type(layer) is not nn.Linear for layer in linear):
        raise ValueError(f"Only linear layers with ReLU or Tanh between them can be exported, but the policy is {nn.Sequential(*modules)}.")
    widths = [layer.in_features for layer in linear if isinstance(layer, nn.Linear)]
    network = PolicyNetwork(widths[0], linear[-1].out_features, widths[1:], activation=activations[kinds.pop()], output=output)  # type: ignore[arg-type]
    targets = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    for target, source in zip(targets, linear, strict=True):
        target.load_state_dict(source.state_dict())
    return network


def _actor_critic_parts(policy: Any) -> tuple[nn.Module, list[nn.Module], bool]:
    return policy.pi_features_extractor, [*policy.mlp_extractor.policy_net, policy.action_net], False


def _sac_parts(policy: Any) -> tuple[nn.Module, list[nn.Module], bool]:
    return policy.actor.features_extractor, [*policy.actor.latent_pi, policy.actor.mu], True


def _td3_parts(policy: Any) -> tuple[nn.Module, list[nn.Module], bool]:
    return policy.actor.features_extractor, list(policy.actor.mu)[:-1], True  # all but the tanh


def _dqn_parts(policy: Any) -> tuple[nn.Module, list[nn.Module], bool]:
    return policy.q_net.features_extractor, list(policy.q_net.q_net), False


_PARTS: Mapping[type[Any], Callable[[Any], tuple[nn.Module, list[nn.Module], bool]]] = {
    ActorCriticPolicy: _actor_critic_parts,
    SACPolicy: _sac_parts,
    CalmSACPolicy: _sac_parts,
    TD3Policy: _td3_parts,
    CalmTD3Policy: _td3_parts,
    DQNPolicy: _dqn_parts,
}
"""Of a policy: its features extractor, its layers from observations to actions, and whether a tanh bounds them."""


def load_model(algorithm: str, path: str | os.PathLike[str]) -> BaseAlgorithm:
    """A model that SB3 saved. **Runs code from the file**: open only files that you trust.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the algorithm is unknown or the file holds another one's model.
    """
    if algorithm not in ALGORITHMS:
        raise unknown_name("algorithm", algorithm, ALGORITHMS)
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {os.fspath(path)}.")
    kind: type[BaseAlgorithm] = getattr(stable_baselines3, algorithm.upper())
    try:
        with preserved_global_generators():
            return kind.load(Path(path), device="cpu", replay_buffer_class=None)  # else SB3 warns of the one that it chose itself for n_steps
    except Exception as error:  # whatever is in the file
        raise ValueError(f"{os.fspath(path)} is no model of {algorithm} that SB3 saved: {error!r}.") from error


def is_unit_box(space: gym.Space[Any]) -> bool:
    """Whether it holds vectors whose entries lie in [-1, 1]."""
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and bool((space.low == -1).all() and (space.high == 1).all())
