"""What decides the learning rate: agents that learn to, schedules, rules, and adapters to Stable-Baselines3 (``agents.sb3``)."""

from agents.actor_critic import ONLINE_ENVIRONMENT, ActorCriticConfig, OnlineActorCritic
from agents.ddpg import DDPG, DDPGConfig
from agents.online_lr import OnlineLR
from agents.policy_iteration import DirectPolicyIteration, PolicyIterationConfig
from agents.rules import ArmijoLineSearch, GreedyBranching, HypergradientDescent, NormalisedGradient, StochasticPolyak
from agents.schedules import Schedule

__all__ = [
    "DDPG",
    "ONLINE_ENVIRONMENT",
    "ActorCriticConfig",
    "ArmijoLineSearch",
    "DDPGConfig",
    "DirectPolicyIteration",
    "GreedyBranching",
    "HypergradientDescent",
    "NormalisedGradient",
    "OnlineActorCritic",
    "OnlineLR",
    "PolicyIterationConfig",
    "Schedule",
    "StochasticPolyak",
]
