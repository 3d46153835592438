"""Stable-Baselines3 on learning rates: the vector environment as its ``VecEnv``, and hyperparameters that suit it.

```python
from stable_baselines3 import PPO
from agents.sb3 import default_hyperparameters, make_sb3_env

env = make_sb3_env(64, task="digits-mlp-scaled", horizon=100)
model = PPO("MlpPolicy", env, seed=0, **default_hyperparameters("ppo", num_envs=64)).learn(300_000)
```

A trained model is a controller as it stands: its ``predict`` has the signature that controllers have. :func:`export_policy` turns it into a
network that can be saved without SB3, and :class:`SB3Agent` trains one with checkpoints; ``python -m agents.train`` does both.
"""

try:
    import stable_baselines3  # noqa: F401
except ImportError as error:
    raise ImportError("agents.sb3 needs Stable-Baselines3: pip install 'lr-env[sb3]'.") from error

from agents.sb3.agent import SB3Agent
from agents.sb3.environments import EpisodeMonitor, LearningRateVecEnv, PairedVecEnv, VariantRewardScale, make_sb3_env
from agents.sb3.export import export_policy, load_model
from agents.sb3.hyperparameters import default_hyperparameters, default_policy
from agents.sb3.policies import CalmSACPolicy, CalmTD3Policy, CorrelatedActionNoise

__all__ = [
    "CalmSACPolicy",
    "CalmTD3Policy",
    "CorrelatedActionNoise",
    "EpisodeMonitor",
    "LearningRateVecEnv",
    "PairedVecEnv",
    "SB3Agent",
    "VariantRewardScale",
    "default_hyperparameters",
    "default_policy",
    "export_policy",
    "load_model",
    "make_sb3_env",
]
