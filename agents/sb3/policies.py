"""Exploration and policies that steady Stable-Baselines3's off-policy algorithms on learning rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.policies import BasePolicy, ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import TD3Policy
from torch import nn


class CorrelatedActionNoise(VectorizedActionNoise):
    """Stationary Ornstein-Uhlenbeck noise of all members at once (Lillicrap et al. 2015, section 3).

    A rate that is off for some decisions shows in their rewards, where white noise averages out. SB3's own noise begins each training at
    0, and begins anew where a training is resumed.

    Args:
        num_envs: N.
        scale: Standard deviation, of actions in [-1, 1].
        correlation: Of successive noise, within [0, 1).
    """

    def __init__(self, num_envs: int, scale: float = 0.2, correlation: float = 0.85) -> None:
        self.num_envs, self.scale, self.correlation = num_envs, scale, correlation
        self.values: np.ndarray | None = None
        """The noise of the last decision over its scale, ``(N, 1)``."""

    def __call__(self) -> np.ndarray:
        """The next noise ``(N, 1)``, the same for all rates of a member; drawn from NumPy's global generator, as SB3 does."""
        fresh = np.random.normal(size=(self.num_envs, 1))  # noqa: NPY002
        self.values = fresh if self.values is None else self.correlation * self.values + np.sqrt(1 - self.correlation**2) * fresh
        return (self.scale * self.values).astype(np.float32)

    def reset(self, indices: Iterable[int] | None = None) -> None:
        """Draws afresh for members whose training has ended; SB3 calls it without members when ``learn`` begins, which changes nothing."""
        if self.values is not None and indices is not None:
            members = list(indices)
            self.values[members] = np.random.normal(size=(len(members), 1))  # noqa: NPY002

    def __repr__(self) -> str:
        return f"CorrelatedActionNoise({self.num_envs}, scale={self.scale}, correlation={self.correlation})"


class CalmActor(BasePolicy):
    """What :class:`CalmTD3Policy` and :class:`CalmSACPolicy` do to SB3's actors.

    Attributes:
        num_updates: So many gradients have come by.
    """

    num_updates: torch.Tensor

    def start_calmly(self, last: nn.Linear, actor_starts: int, saturation_penalty: float) -> None:
        """Makes the first actions nearly 0 and sets what :meth:`calm` does.

        Args:
            last: The layer before the tanh.
            actor_starts: Gradients that are ignored at first.
            saturation_penalty: Weight of the mean squared preactivation of the tanh in the loss.
        """
        nn.init.uniform_(last.weight, -3e-3, 3e-3)  # Lillicrap et al. 2015, section 7
        nn.init.zeros_(last.bias)
        self.actor_starts, self.saturation_penalty = actor_starts, saturation_penalty
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def calm(self, preactivations: torch.Tensor) -> torch.Tensor:
        """Preactivations ``(N, A)`` as they are, with the gradient changed where one will come."""
        if preactivations.requires_grad:
            values = preactivations.detach()

            def change(gradient: torch.Tensor) -> torch.Tensor:
                self.num_updates += 1
                if int(self.num_updates) <= self.actor_starts:
                    return torch.zeros_like(gradient)
                return gradient + 2 * self.saturation_penalty / values.numel() * values

            preactivations.register_hook(change)
        return preactivations


class CalmTD3Actor(TD3Actor, CalmActor):
    """Of :class:`CalmTD3Policy`."""

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Observations ``(N, F)`` to actions ``(N, A)`` in [-1, 1]."""
        return self.calm(self.mu[:-1](self.extract_features(obs, self.features_extractor))).tanh()


class CalmSACActor(SACActor, CalmActor):
    """Of :class:`CalmSACPolicy`."""

    def get_action_dist_params(self, obs: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Of observations ``(N, F)``: mean and log of the standard deviation before the tanh, ``(N, A)`` each."""
        mean, log_std, others = super().get_action_dist_params(obs)
        return self.calm(mean), log_std, others


class NormalisedReLU(nn.Module):
    """Layer normalisation without parameters, then ReLU."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """``(N, H) -> (N, H)``."""
        return nn.functional.layer_norm(values, values.shape[-1:]).relu()


class CalmTD3Policy(TD3Policy):
    """SB3's policy of TD3 and DDPG, with what steadies :class:`agents.ddpg.DDPG`.

    The actor starts near 0, late, and is kept from saturating; the critics have layer normalisation against overestimation far from the
    data. SB3's actor starts anywhere and at once follows an untrained critic, which pushes it to a bound, often the lowest rate, where the
    tanh lets it learn no more.

    Args:
        *arguments: Of ``TD3Policy``.
        actor_starts: Updates of the actor that are left out until the critic is trained.
        saturation_penalty: Weight of the squared preactivations of the actor's tanh in its loss.
        **options: Of ``TD3Policy``.
    """

    def __init__(self, *arguments: Any, actor_starts: int = 250, saturation_penalty: float = 1e-3, **options: Any) -> None:
        self.actor_starts, self.saturation_penalty = actor_starts, saturation_penalty
        super().__init__(*arguments, **options)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> CalmTD3Actor:
        """The actor, or its target."""
        actor = CalmTD3Actor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)
        actor.start_calmly(actor.mu[-2], self.actor_starts, self.saturation_penalty)  # type: ignore[arg-type]
        return actor

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """The critics, or their targets."""
        self.critic_kwargs["activation_fn"] = NormalisedReLU
        return super().make_critic(features_extractor)


class CalmSACPolicy(SACPolicy):
    """SB3's policy of SAC with critics as those of :class:`CalmTD3Policy`, and an actor whose mean starts so and whose noise starts smaller.

    Args:
        *arguments: Of ``SACPolicy``.
        actor_starts: Updates of the actor's mean that are left out until the critic is trained.
        saturation_penalty: Weight of the squared mean before the tanh in the actor's loss.
        initial_log_std: Log of the standard deviation before the tanh at first; SB3's is near 0, nearly uniform actions.
        **options: Of ``SACPolicy``.
    """

    def __init__(
        self, *arguments: Any, actor_starts: int = 500, saturation_penalty: float = 1e-3, initial_log_std: float = -1.5, **options: Any
    ) -> None:
        self.actor_starts, self.saturation_penalty, self.initial_log_std = actor_starts, saturation_penalty, initial_log_std
        super().__init__(*arguments, **options)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> CalmSACActor:
        """The actor."""
        actor = CalmSACActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)
        actor.start_calmly(actor.mu, self.actor_starts, self.saturation_penalty)  # type: ignore[arg-type]
        nn.init.uniform_(actor.log_std.weight, -3e-3, 3e-3)  # type: ignore[attr-defined]
        nn.init.constant_(actor.log_std.bias, self.initial_log_std)  # type: ignore[attr-defined]
        return actor

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """The critics, or their targets."""
        self.critic_kwargs["activation_fn"] = NormalisedReLU
        return super().make_critic(features_extractor)
