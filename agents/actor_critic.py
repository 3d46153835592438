"""The online actor-critic of Xu, Qin, Wang and Liu 2017 (arXiv 1705.11159): it learns during the one training that it controls.

At each SGD step t, with f the minibatch loss, the state s = χ(w, x) of a minibatch x at the weights w, the actor π_θ and the critic Q_φ:

1. sample x_i; s = χ(w_t, x_i); a = π_θ(s);
2. w_{t+1} = w_t − a ∇f(x_i; w_t);
3. r = f(x_i; w_t) − f(x_i; w_{t+1}); s_i' = χ(w_{t+1}, x_i);
4. δ = r + γ Q_φ(s_i', π_θ(s_i')) − Q_φ(s, a); φ goes along δ ∇_φ Q_φ(s, a);
5. sample another x_j; s_j' = χ(w_{t+1}, x_j); θ goes along ∇_θ π_θ(s_j') ∇_a Q_φ(s_j', a) at a = π_θ(s_j'): a rate that is fitted to one
   minibatch must not overfit it.

Where this comes from:

- described: an actor, a two-layer LSTM with 20 units a layer, decides the rate at each step; a critic with one hidden layer of 10 units judges
  state and action by TD learning; the state is the average loss of the minibatch; both are trained along with the main network;
- recalled, and not checked against the source: the five steps above; no replay memory, no target networks; Adam for both networks; the rate is
  the absolute value of the actor's output;
- ours, each a field of :class:`ActorCriticConfig`: discount, Adam's rates, clipping, the late start of the actor, exploration, what the critic's
  hidden layer is made of, truncated back-propagation; and ``initial_rate`` of the environment, which is the actor's first output, whatever it sees.
  Ours without a switch: x_j is the next minibatch, which the next step trains on; s_i' and s_j' are read from the LSTM's state after s, and only
  the next step's s advances it; the critic takes the rate, or its log10; the rate applied, and no other, is clipped to the range; the last step of
  a training, a divergence too, teaches nothing, as there is no s_j' after it.

:class:`agents.DDPG`, with its replay memory, is another algorithm.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from lr_env.checks import positive_integer, unknown_name
from lr_env.controllers import BoundController
from lr_env.mdp import MDP
from lr_env.mdp.actions import RateRange
from lr_env.mdp.features import CLIP, resolve_features
from lr_env.mdp.rewards import make_reward
from lr_env.recurrent import Memory, RecurrentPolicy
from lr_env.seeding import check_seed, preserved_global_generators
from torch import Tensor, nn

ONLINE_ENVIRONMENT: dict[str, Any] = {"features": "xu2017", "action": "rate", "reward": "loss", "reward_on": "same_batch"}
"""Arguments of ``LearningRate-v0`` under which :class:`OnlineActorCritic` runs the algorithm as it is written above."""

_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
_CHOICES = {
    "output": ("absolute", "log"),
    "exploration": ("log_normal", "none"),
    "actor_example": ("next", "same"),
    "critic_activation": _ACTIVATIONS,
}


@dataclass(frozen=True)
class ActorCriticConfig:
    """Choices of :class:`OnlineActorCritic`."""

    output: Literal["absolute", "log"] = "absolute"
    """What the actor's output y is. ``"absolute"``: the rate is |y|, as recalled; it has a kink at 0. ``"log"``: y is log10 of the rate."""
    actor_example: Literal["next", "same"] = "next"
    """Whose state the actor learns at: ``"next"``: of another minibatch, the next one, as recalled; ``"same"``: of the one just trained on."""
    exploration: Literal["log_normal", "none"] = "log_normal"
    """Noise on the rate. ``"none"`` as recalled; but then the critic never sees two rates in one state, and ∂Q/∂a is hardly known. Ours."""
    exploration_decades: float = 0.1
    """Standard deviation of log-normal exploration, decades, ≥ 0. Ours."""
    discount: float = 0.9
    """γ, within [0, 1]. Ours."""
    actor_learning_rate: float = 1e-3
    """Adam's rate for the actor, > 0. Ours."""
    critic_learning_rate: float = 1e-3
    """Adam's rate for the critic, > 0. Ours."""
    gradient_clip: float | None = 1.0
    """Largest norm of each network's gradient, > 0, or None. Ours."""
    actor_starts: int = 100
    """Updates of the critic before the first of the actor, which an untrained critic would push anywhere; ≥ 0. Ours."""
    truncation: int = 1
    """Steps that the actor's gradient goes back through the LSTM, ≥ 1; 1: its state is a constant. Ours."""
    critic_activation: Literal["tanh", "relu"] = "tanh"
    """Of the critic's hidden layer. Ours."""
    actor_hidden: int = 20
    """Units of each layer of the LSTM, as described."""
    actor_layers: int = 2
    """Layers of the LSTM, as described."""
    critic_hidden: int = 10
    """Units of the critic's hidden layer, as described."""

    def __post_init__(self) -> None:
        for name, valid in _CHOICES.items():
            if getattr(self, name) not in valid:
                raise unknown_name(name, getattr(self, name), valid)
        for name in ("truncation", "actor_hidden", "actor_layers", "critic_hidden"):
            positive_integer(name, getattr(self, name))
        ranges = {
            "discount": 0 <= self.discount <= 1,
            "exploration_decades": 0 <= self.exploration_decades < math.inf,
            "actor_learning_rate": 0 < self.actor_learning_rate < math.inf,
            "critic_learning_rate": 0 < self.critic_learning_rate < math.inf,
            "gradient_clip": self.gradient_clip is None or self.gradient_clip > 0,
            "actor_starts": self.actor_starts >= 0,
        }
        for name, is_valid in ranges.items():
            if not is_valid:
                raise ValueError(f"{name} is out of range: {getattr(self, name)!r} was given. See the field's documentation in ActorCriticConfig.")


class OnlineLearner:
    """An actor and a critic, and their updates: of one training, as the algorithm has them, or of N that share them and their mean gradient.

    Args:
        num_features: F.
        rates: Initial rate, and the range that rates are clipped to.
        config: Choices.
        seed: Seed of networks and exploration.

    Attributes:
        actor: π_θ, float64.
        critic: Q_φ of state and action ``(N, F + 1)``, float64.
        num_updates: Updates of the critic so far.
    """

    def __init__(self, num_features: int, rates: RateRange, config: ActorCriticConfig, seed: np.random.SeedSequence) -> None:
        self.config, self.num_updates = config, 0
        networks, exploration = seed.spawn(2)
        first_output = rates.initial if config.output == "absolute" else math.log10(rates.initial)
        with preserved_global_generators():
            torch.default_generator.manual_seed(int(networks.generate_state(1)[0]))
            self.actor = RecurrentPolicy(
                num_features, config.actor_hidden, config.actor_layers, config.output, rates.lowest, rates.highest, first_output
            )
            hidden = nn.Linear(num_features + 1, config.critic_hidden, dtype=torch.float64)
            value = nn.Linear(config.critic_hidden, 1, dtype=torch.float64)
            self.critic = nn.Sequential(hidden, _ACTIVATIONS[config.critic_activation](), value)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), config.actor_learning_rate, fused=True)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), config.critic_learning_rate, fused=True)
        self._generator = np.random.default_rng(exploration)
        self._memory = self.actor.empty_memory()
        # The states that the gradient goes back through, each with the memory before it, and whose training begins with it.
        self._past: deque[tuple[Tensor, Memory, Tensor]] = deque(maxlen=config.truncation - 1)
        self._state = self._action = torch.zeros(1, 1, dtype=torch.float64)

    def act(self, state: np.ndarray, deterministic: bool = False) -> float:
        """The rate for a state ``(F,)`` of the one training, which the LSTM has read from now on."""
        return float(self.act_all(state[None], np.zeros(1, bool), deterministic)[0])

    def act_all(self, states: np.ndarray, starts: np.ndarray, deterministic: bool = False) -> np.ndarray:
        """Rates ``(N,)`` for states ``(N, F)``, which the LSTM has read from now on.

        Args:
            states: Of each training.
            starts: Whose training begins with this state, booleans ``(N,)``.
            deterministic: Whether to act without exploration.
        """
        self._state, fresh = torch.from_numpy(np.array(states, np.float64)), torch.from_numpy(np.array(starts, bool))[:, None]
        memory = self.actor.empty_memory(len(states)) if len(self._memory[0][0]) != len(states) else _renewed(self._memory, fresh)
        with torch.no_grad():
            self._past.append((self._state, memory, fresh))
            output, self._memory = self.actor(self._state, memory)
        rates: np.ndarray = self.actor.rates(output)[:, 0]
        if self.config.exploration == "log_normal" and not deterministic:
            rates = rates * 10.0 ** (self.config.exploration_decades * self._generator.standard_normal(len(states)))
        rates = self.actor.clip(rates)
        self._action = torch.from_numpy(rates if self.config.output == "absolute" else np.log10(rates))[:, None]
        return rates

    def learn(self, reward: float, same_state: np.ndarray, next_state: np.ndarray) -> None:
        """:meth:`learn_all` of the one training: r, s_i' ``(F,)`` and s_j' ``(F,)``."""
        self.learn_all(np.array([reward]), same_state[None], next_state[None], np.ones(1, bool))

    def learn_all(self, rewards: np.ndarray, same_states: np.ndarray, next_states: np.ndarray, going: np.ndarray) -> None:
        """Steps 4 and 5 of the algorithm, after :meth:`act_all`; what is not finite teaches nothing.

        Args:
            rewards: r ``(N,)``.
            same_states: s_i' ``(N, F)``.
            next_states: s_j' ``(N, F)``.
            going: Whose training goes on, ``(N,)``: the others teach nothing either.
        """
        taught = going & np.isfinite(rewards) & np.isfinite(same_states).all(1) & np.isfinite(next_states).all(1)
        if not taught.any():
            return
        chosen = torch.from_numpy(np.flatnonzero(taught))
        config, reward = self.config, torch.from_numpy(np.array(rewards, np.float64))[chosen, None]
        same, other = (torch.from_numpy(np.array(states, np.float64))[chosen] for states in (same_states, next_states))
        memory = _of(self._memory, chosen)
        with torch.no_grad():
            target = reward + config.discount * self._value(same, self._action_of(self.actor(same, memory)[0]))
        error = target - self._value(self._state[chosen], self._action[chosen])
        self._update(self.critic, self._critic_optimizer, error.square().mean() / 2)
        self.num_updates += 1
        if self.num_updates <= config.actor_starts:
            return
        state = other if config.actor_example == "next" else same
        action = self._action_of(self.actor(state, _of(self._memory_with_gradient(), chosen))[0])
        self._update(self.actor, self._actor_optimizer, -self._value(state, action).mean())

    def get_state(self) -> dict[str, Any]:
        """All that decides what follows, nested, for :func:`lr_env.files.pack`."""
        return {
            "actor": dict(self.actor.state_dict()),
            "critic": dict(self.critic.state_dict()),
            "optimizers": [[dict(optimizer.state[each]) for each in optimizer.param_groups[0]["params"]] for optimizer in self._optimizers],
            "generator": self._generator.bit_generator.state,
            "memory": self._memory,
            "past": list(self._past),
            "last": [self._state, self._action],
            "num_updates": self.num_updates,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Puts back what :meth:`get_state` returned."""
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        for optimizer, states in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.state.clear()  # where there were no averages yet, none stay
            for parameter, values in zip(optimizer.param_groups[0]["params"], states, strict=True):
                if values:
                    optimizer.state[parameter] = {name: value.clone() for name, value in values.items()}
        self._generator.bit_generator.state = state["generator"]
        self._memory, (self._state, self._action) = state["memory"], state["last"]
        self._past = deque(state["past"], maxlen=self._past.maxlen)
        self.num_updates = state["num_updates"]

    @property
    def _optimizers(self) -> tuple[torch.optim.Adam, torch.optim.Adam]:
        return self._actor_optimizer, self._critic_optimizer

    def _action_of(self, output: Tensor) -> Tensor:
        """The actions ``(N, 1)`` that the critic judges: the rates, or their logarithms."""
        return output.abs() if self.config.output == "absolute" else output

    def _value(self, state: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.critic(torch.cat([state, action], dim=1))
        return value

    def _memory_with_gradient(self) -> Memory:
        """The LSTM's state after s, as a function of θ over the last ``truncation − 1`` states."""
        if not self._past:
            return self._memory
        memory = self._past[0][1]
        for state, _, fresh in self._past:
            memory = self.actor(state, _renewed(memory, fresh))[1]
        return memory

    def _update(self, network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        parameters = list(network.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        if self.config.gradient_clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)
        optimizer.step()


def _of(memory: Memory, chosen: Tensor) -> Memory:
    """The memory of some trainings alone."""
    return [(hidden[chosen], cell[chosen]) for hidden, cell in memory]


def _renewed(memory: Memory, fresh: Tensor) -> Memory:
    """The memory, empty for trainings that begin, ``fresh (N, 1)``."""
    return [(hidden.masked_fill(fresh, 0.0), cell.masked_fill(fresh, 0.0)) for hidden, cell in memory] if fresh.any() else memory


@dataclass(frozen=True)
class OnlineRecord:
    """What happened in N trainings of T steps; after a training's end, not a number.

    Attributes:
        losses: Minibatch losses before each step and after the last, ``(T + 1, N)``.
        rates: Rates applied, ``(T, N)``.
        rewards: ``(T, N)``.
        diverged: ``(N,)``.
    """

    losses: np.ndarray
    rates: np.ndarray
    rewards: np.ndarray
    diverged: np.ndarray


class OnlineActorCritic:
    """The online actor-critic for N trainings side by side, each with an actor and a critic of its own.

    A controller that learns while it controls: after each :meth:`predict` it is told the outcome by :meth:`observe`. Its networks and their LSTM
    states live here and not in the state that ``predict`` returns; a training that begins gets new ones. What happens in one training does
    not depend on the others.

    ```python
    environment = gym.make_vec("LearningRate-v0", num_envs=5, task="mnist-cnn", **ONLINE_ENVIRONMENT)
    record = OnlineActorCritic(seed=0).run(environment, seeds=[0, 1, 2, 3, 4])
    ```

    Args:
        config: Choices.
        seed: Of networks and exploration, together with each training's own seed.

    Attributes:
        learners: One per training.
    """

    def __init__(self, config: ActorCriticConfig | None = None, seed: int = 0) -> None:
        self.config, self.seed = config or ActorCriticConfig(), check_seed(seed)
        self.learners: list[OnlineLearner] = []
        self._seeds: list[int] = []
        self._rates = MDP(**ONLINE_ENVIRONMENT).rate_range()

    def begin(self, seeds: Sequence[int], mdp: MDP | None = None) -> None:
        """Forgets everything; the next observations are the first of new trainings.

        Args:
            seeds: One per training.
            mdp: The decision process whose rates are chosen; None for SGD's default range and initial rate.

        Raises:
            ValueError: If the action of the decision process is not the rate, or there are several parameter groups.
        """
        self._rates = check_process(mdp or MDP(**ONLINE_ENVIRONMENT)).rate_range()
        self._seeds, self.learners = [check_seed(seed) for seed in seeds], []

    def bind(self, optimizer: str = "sgd") -> BoundController:
        """The algorithm with its decision process, for what runs controllers; it still learns in each training."""
        return BoundController(self, MDP(optimizer=optimizer, **ONLINE_ENVIRONMENT))

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """Rates ``(N, 1)``, float64, see :class:`lr_env.controllers.Controller`; the LSTMs have read the observations ``(N, F)`` from now on.

        Without :meth:`begin`, the trainings' seeds are 0, 1, …. The returned state only tells that the trainings have begun.
        """
        observations = np.atleast_2d(np.asarray(observation, np.float64))
        num_members, num_features = observations.shape
        if len(self._seeds) != num_members:
            self._seeds, self.learners = list(range(num_members)), []
        starts = np.full(num_members, state is None) if episode_start is None else np.reshape(episode_start, num_members)
        if not self.learners:
            self.learners, starts = [self._new_learner(i, num_features) for i in range(num_members)], np.zeros(num_members, bool)
        for member in np.flatnonzero(starts):
            self.learners[member] = self._new_learner(int(member), num_features)
        rates = np.array([[learner.act(row, deterministic)] for learner, row in zip(self.learners, observations, strict=True)])
        return (rates if np.ndim(observation) == 2 else rates[0]), (np.ones(num_members, bool),)

    def observe(
        self, reward: np.ndarray, observation: np.ndarray, same_observation: np.ndarray | None = None, ended: np.ndarray | None = None
    ) -> None:
        """Learns from the outcome of the last :meth:`predict`.

        Args:
            reward: r ``(N,)``.
            observation: ``(N, F)`` on the next minibatch: s_j'. It is the next that ``predict`` gets.
            same_observation: ``(N, F)`` on the same minibatch at the new weights: s_i'. Without it s_j' stands in, a deviation.
            ended: Whose training is over, booleans ``(N,)``: these learn no more.
        """
        others = np.atleast_2d(np.asarray(observation, np.float64))
        same = others if same_observation is None else np.atleast_2d(np.asarray(same_observation, np.float64))
        going = np.ones(len(others), bool) if ended is None else ~np.reshape(ended, len(others))
        rewards = np.reshape(reward, len(others))
        for member in np.flatnonzero(going):
            self.learners[member].learn(float(rewards[member]), same[member], others[member])

    def run(self, environment: gym.Env[Any, Any] | VectorEnv[Any, Any, Any], seeds: Sequence[int]) -> OnlineRecord:
        """Runs one training per seed, from its beginning to its end, each under a new actor and critic that learn meanwhile.

        With :data:`ONLINE_ENVIRONMENT` this is the algorithm. Other features, or another reward, are accepted; then s_i' is not known, and s_j'
        stands in. Afterwards ``environment.unwrapped.evaluate(split)`` tells about the final weights of all that did not diverge, if all
        trainings have the same length.

        Args:
            environment: ``LearningRate-v0`` with ``action="rate"``; of a vector environment, one that resets in the next step (the default).
            seeds: One per member.

        Raises:
            TypeError: If the environment is no ``LearningRate-v0``.
            ValueError: If its action is not the rate, it resets at another time, or the number of seeds is wrong.
        """
        mdp = getattr(environment.unwrapped, "mdp", None)
        if not isinstance(mdp, MDP):
            raise TypeError(f"The online actor-critic controls LearningRate-v0, but {environment} was given.")
        vector = environment if isinstance(environment, VectorEnv) else SyncVectorEnv([lambda: environment])
        if vector.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
            raise ValueError(
                'The online actor-critic needs an environment that resets in the next step: pass autoreset_mode="NextStep" to gym.make_vec.'
            )
        if len(seeds) != vector.num_envs:
            raise ValueError(f"One seed per training is needed: {vector.num_envs}, but {len(seeds)} were given.")
        self.begin(seeds, mdp)
        observations, info = vector.reset(seed=list(seeds))  # type: ignore[arg-type]
        knows_same = knows_same_state(mdp)
        running, diverged = np.ones(len(seeds), bool), np.zeros(len(seeds), bool)
        losses, rates, rewards, state = [np.array(info["loss"])], [], [], None
        while running.any():
            actions, state = self.predict(observations, state)
            observations, reward, terminated, truncated, info = vector.step(actions)
            ended = terminated | truncated
            same = same_states(losses[-1], reward) if knows_same else None
            self.observe(reward, observations, same, ended | ~running)
            losses.append(np.where(running, info["loss"], np.nan))
            rates.append(np.where(running, info["learning_rate"], np.nan))
            rewards.append(np.where(running, reward, np.nan))
            diverged |= running & info["diverged"]
            running &= ~ended
        return OnlineRecord(np.array(losses), np.array(rates), np.array(rewards), diverged)

    def _new_learner(self, member: int, num_features: int) -> OnlineLearner:
        return OnlineLearner(num_features, self._rates, self.config, np.random.SeedSequence([self.seed, self._seeds[member]]))


def check_process(mdp: MDP) -> MDP:
    """The decision process, if its action is one rate.

    Raises:
        ValueError: If it is not.
    """
    kind = mdp.action if isinstance(mdp.action, str) else mdp.action.get("kind")
    if kind != "rate" or mdp.lr_groups != "global" or mdp.control_momentum:
        raise ValueError(
            f"The online actor-critic chooses one rate, but action={mdp.action!r}, lr_groups={mdp.lr_groups!r} and "
            f"control_momentum={mdp.control_momentum} were given: make the environment with **agents.ONLINE_ENVIRONMENT, or at least "
            'with action="rate".'
        )
    return mdp


def knows_same_state(mdp: MDP) -> bool:
    """Whether rewards tell s_i': the state is the loss, and the reward its fall on the same minibatch.

    The SGD steps of one decision have minibatches of their own, so that with several no single one is the same.
    """
    reward = make_reward(mdp.reward, mdp.reward_on)
    is_state_loss = resolve_features(mdp.features) == resolve_features("xu2017")
    return is_state_loss and (reward.kind, reward.source, mdp.steps_per_action) == ("loss", "same_batch", 1)


def same_states(losses: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """s_i' ``(N, 1)``, where :func:`knows_same_state`: f(x_i; w_{t+1}) = f(x_i; w_t) − r.

    Args:
        losses: f(x_i; w_t), ``(N,)``.
        rewards: r, ``(N,)``.
    """
    states: np.ndarray = np.clip(losses - rewards, -CLIP, CLIP)[:, None]
    return states
