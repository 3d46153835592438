"""What decides the learning rate: a DDPG agent, schedules, rules, and adapters to Stable-Baselines3 (``agents.sb3``)."""

from agents.ddpg import DDPG, DDPGConfig
from agents.rules import StochasticPolyak
from agents.schedules import Schedule

__all__ = ["DDPG", "DDPGConfig", "Schedule", "StochasticPolyak"]
