"""The decision process: features, actions, rewards, and the MDP that holds them together."""

from lr_env.mdp.actions import ACTIONS, BASE_SCHEDULES, RateRange, make_action
from lr_env.mdp.features import FEATURE_SETS, FEATURES, Feature, resolve_features
from lr_env.mdp.mdp import MDP, DecisionProcess
from lr_env.mdp.rewards import REWARD_SOURCES, REWARDS, Reward, make_reward

__all__ = [
    "ACTIONS",
    "BASE_SCHEDULES",
    "FEATURES",
    "FEATURE_SETS",
    "MDP",
    "REWARDS",
    "REWARD_SOURCES",
    "DecisionProcess",
    "Feature",
    "RateRange",
    "Reward",
    "make_action",
    "make_reward",
    "resolve_features",
]
