"""Controllers: what decides the rate, and the decision process it was made for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from lr_env.checks import positive_integer, unknown_name
from lr_env.files import FileFormatError, read_file, write_file
from lr_env.isolation import full_precision, isolated
from lr_env.mdp import MDP
from lr_env.mdp.actions import RateAction
from lr_env.recurrent import RecurrentPolicy
from lr_env.seeding import preserved_global_generators

State: TypeAlias = tuple[np.ndarray, ...] | None
"""A recurrent state: arrays with leading dimension N, owned by the caller; None at the start and for controllers without one."""

CONTROLLER_KIND = "controller"

Activation: TypeAlias = Literal["relu", "tanh"]
Output: TypeAlias = Literal["tanh", "clip", "argmax"]

_ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
_OUTPUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "clip": lambda values: values.clamp(-1, 1),
    "argmax": lambda values: values.argmax(-1),
}
_ACTIVATIONS_OF_ONE: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"relu": lambda values: np.maximum(values, 0), "tanh": np.tanh}
_OUTPUTS_OF_ONE: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "clip": lambda values: np.minimum(np.maximum(values, -1), 1),
    "argmax": lambda values: np.asarray(values.argmax()),
}

LARGEST_LAYER_OF_ONE = 2**13
"""Weights of a layer that NumPy multiplies with one observation: larger ones it would spread over threads, of which PyTorch has few here."""


class Controller(Protocol):
    """What decides the rate; the signature of Stable-Baselines3's ``predict``, so that its models are controllers."""

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """Actions for observations.

        Args:
            observation: ``(N, F)``.
            state: What the last call returned, or None at the start.
            episode_start: Booleans ``(N,)``: whose training begins with this observation; None for nobody's but at the start.
            deterministic: Whether to act without exploration.

        Returns:
            Actions ``(N, …)`` and the new state.
        """
        ...


@runtime_checkable
class OnlineController(Controller, Protocol):
    """A controller that learns while it controls: what runs it calls these too, and lets it explore."""

    def begin(self, seeds: Sequence[int], mdp: MDP | None = None) -> None:
        """Forgets everything; the next observations are the first of new trainings.

        Args:
            seeds: One per training ``(N,)``.
            mdp: The decision process.
        """
        ...

    def observe(
        self, reward: np.ndarray, observation: np.ndarray, same_observation: np.ndarray | None = None, ended: np.ndarray | None = None
    ) -> None:
        """What the last actions led to.

        Args:
            reward: ``(N,)``.
            observation: On the next minibatch ``(N, F)``; the next that ``predict`` gets.
            same_observation: On the same minibatch after the step ``(N, F)``, where the reward tells it; else None.
            ended: Whose training is over, booleans ``(N,)``; None for nobody's.
        """
        ...


@dataclass(frozen=True)
class BoundController:
    """A controller with the decision process it was made for: what benchmarks compare and files hold.

    Attributes:
        controller: Decides the rate.
        mdp: What it observes and what its actions do.

    Raises:
        TypeError: If one of them is something else.
    """

    controller: Controller
    mdp: MDP

    def __post_init__(self) -> None:
        if not callable(getattr(self.controller, "predict", None)) or not isinstance(self.mdp, MDP):
            raise TypeError(
                f"BoundController(controller, mdp) needs an object with predict() and an MDP, but {self.controller!r} and {self.mdp!r} were given."
            )


def decide(
    controller: Controller, observations: np.ndarray, state: Any, starts: np.ndarray | None, deterministic: bool = True
) -> tuple[np.ndarray, Any]:
    """What a controller of anybody's gives.

    Raises:
        TypeError: If it is not a pair.
    """
    decision: Any = controller.predict(observations, state, episode_start=starts, deterministic=deterministic)
    if not (isinstance(decision, tuple) and len(decision) == 2):
        name = type(controller).__name__
        raise TypeError(f"{name}.predict must return a pair (actions, state), with None for a state where there is none, but gave {decision!r}.")
    actions, state = decision
    return actions, state


class PolicyNetwork(nn.Module):
    """A multilayer perceptron from observations ``(N, F)`` to actions ``(N, A)`` in [−1, 1], or to choices among A.

    Args:
        num_features: F.
        num_actions: A.
        hidden: Widths of the hidden layers.
        seed: Seed of the initial weights. The last layer starts small, so that the first actions are near 0.
        activation: ``"relu"`` or ``"tanh"``, between layers.
        output: What becomes of the last layer's values: ``"tanh"``, ``"clip"`` to [−1, 1], or ``"argmax"``: the index of the largest, an
            integer for a discrete action.
        averages: Whether the perceptron is also given the mean of all observations since the start of the training, which its state keeps.

    Raises:
        ValueError: If a name is unknown.
    """

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        hidden: Sequence[int] = (64, 64),
        seed: int = 0,
        activation: Activation = "relu",
        output: Output = "tanh",
        averages: bool = False,
    ) -> None:
        super().__init__()
        for what, name, valid in (("activation", activation, _ACTIVATIONS), ("output", output, _OUTPUTS)):
            if name not in valid:
                raise unknown_name(what, name, valid)
        self.num_features, self.num_actions, self.hidden = num_features, num_actions, tuple(hidden)
        self.activation, self.output, self.averages = activation, output, averages
        widths = [(1 + averages) * num_features, *hidden]
        with preserved_global_generators(), isolated():
            torch.default_generator.manual_seed(seed)
            layers: list[nn.Module] = []
            for fan_in, fan_out in pairwise(widths):
                layers += [nn.Linear(fan_in, fan_out), _ACTIVATIONS[activation]()]
            last = nn.Linear(widths[-1], num_actions)
            nn.init.uniform_(last.weight, -3e-3, 3e-3)  # Lillicrap et al. 2015, section 7
            nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)
        self._linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        self._has_small_layers = all(layer.weight.numel() <= LARGEST_LAYER_OF_ONE for layer in self._linear)
        self._addresses: list[int] = []
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments that make another one like this, JSON-ready."""
        named = {"averages": True} if self.averages else {}  # younger than the others: files without it keep their bytes
        return {name: getattr(self, name) for name in ("num_features", "num_actions", "hidden", "activation", "output")} | named

    @staticmethod
    def expected_shapes(architecture: Mapping[str, Any], most_layers: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by name, without making them."""
        num_inputs = (1 + bool(architecture.get("averages"))) * architecture["num_features"]
        widths = [num_inputs, *architecture["hidden"], architecture["num_actions"]]
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
            shapes |= {f"layers.{2 * layer}.weight": (fan_out, fan_in), f"layers.{2 * layer}.bias": (fan_out,)}
        return shapes

    def preactivations(self, inputs: Tensor) -> Tensor:
        """What the last layer gives: observations ``(N, F)``, or with means :meth:`inputs` ``(N, 2 F)``, to ``(N, A)``."""
        values: Tensor = self.layers(inputs)
        return values

    def forward(self, inputs: Tensor) -> Tensor:
        """As :meth:`preactivations`, to actions ``(N, A)``, or with ``"argmax"`` ``(N,)``."""
        return _OUTPUTS[self.output](self.preactivations(inputs))

    def inputs(self, observations: np.ndarray, state: State = None, episode_start: np.ndarray | None = None) -> tuple[np.ndarray, State]:
        """What the perceptron is given for observations ``(N, F)`` or ``(F,)``, float32, and the state after them.

        With ``averages`` that is observation and mean, ``(N, 2 F)`` or ``(2 F,)``; the state holds means ``(N, F)`` and how many observations
        they are of ``(N, 1)``.
        """
        if not self.averages:
            return observations, state
        rows = observations.reshape(-1, self.num_features)
        means, counts = (np.zeros(rows.shape), np.zeros((len(rows), 1))) if state is None else state
        if state is not None and episode_start is not None and np.any(episode_start):
            going = ~np.reshape(episode_start, (-1, 1)).astype(bool)
            means, counts = np.where(going, means, 0.0), np.where(going, counts, 0.0)
        counts = counts + 1
        means = means + (rows - means) / counts
        return np.concatenate([observations, means.astype(np.float32).reshape(observations.shape)], axis=-1), (means, counts)

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """See :class:`Controller`; one observation ``(F,)`` gives one action. Always deterministic; for the state see :meth:`inputs`."""
        observations = np.asarray(observation, np.float32)
        if observations.ndim not in (1, 2) or observations.shape[-1] != self.num_features:
            expected = f"(N, {self.num_features}) or ({self.num_features},)"
            raise ValueError(f"Observations of shape {expected} are expected, but {observations.shape} was given.")
        affine = self.affine()
        inputs, state = self.inputs(observations, state, episode_start)
        if self._has_small_layers and observations.size == self.num_features:
            return self._predict_one(inputs, affine), state
        with torch.no_grad(), full_precision():
            # What `forward` does; calls of modules would take longer than this.
            values, activate = torch.from_numpy(inputs), torch.relu_ if self.activation == "relu" else torch.tanh_
            for weight, bias in affine[:-1]:
                values = activate(nn.functional.linear(values, weight, bias))
            return _OUTPUTS[self.output](nn.functional.linear(values, *affine[-1])).numpy(), state

    def _predict_one(self, inputs: np.ndarray, affine: Sequence[tuple[Tensor, Tensor]]) -> np.ndarray:
        """The action for one observation's inputs ``(F,)`` or ``(1, F)``, by NumPy: PyTorch's calls would take several times as long."""
        addresses = [tensor.data_ptr() for pair in affine for tensor in pair]
        if addresses != self._addresses:  # the weights are new, or others'
            self._addresses, self._arrays = addresses, [(weight.detach().numpy(), bias.detach().numpy()) for weight, bias in affine]
        values, activate = inputs.reshape(-1), _ACTIVATIONS_OF_ONE[self.activation]
        with np.errstate(all="ignore"):  # as PyTorch
            for weight, bias in self._arrays[:-1]:
                values = activate(weight @ values + bias)
            weight, bias = self._arrays[-1]
            action = _OUTPUTS_OF_ONE[self.output](weight @ values + bias)
        return action.reshape((*inputs.shape[:-1], *action.shape))

    def affine(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of the layers; whoever loads or moves them may have put new tensors in their place."""
        # A module's attributes take several times as long.
        return [(own["weight"], own["bias"]) for own in [layer._parameters for layer in self._linear]]  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_addresses": [], "_arrays": []}  # a copy's weights lie elsewhere


POLICIES: Mapping[str, type[PolicyNetwork] | type[RecurrentPolicy]] = {"perceptron": PolicyNetwork, "lstm": RecurrentPolicy}
"""What a file can hold, by the name that it gives; one without a name holds a perceptron."""


def save_controller(path: str | os.PathLike[str], bound: BoundController) -> None:
    """Writes a controller as one ``.safetensors`` file; equal controllers give equal bytes.

    Raises:
        TypeError: If the controller is neither a :class:`PolicyNetwork` nor a :class:`lr_env.RecurrentPolicy`.
        ValueError: If it does not fit its decision process.
    """
    policy = bound.controller
    kind = next((name for name, each in POLICIES.items() if type(policy) is each), None)
    if kind is None or not isinstance(policy, PolicyNetwork | RecurrentPolicy):
        raise TypeError(f"Only a PolicyNetwork or a RecurrentPolicy can be saved, but {type(policy).__name__} was given.")
    _check_fit(policy, bound.mdp)
    named = {} if kind == "perceptron" else {"policy": kind}
    write_file(path, CONTROLLER_KIND, {"architecture": policy.architecture, "mdp": bound.mdp.to_dict()} | named, policy.state_dict())


def load_controller(path: str | os.PathLike[str]) -> BoundController:
    """Reads a controller that :func:`save_controller` wrote. Runs no code from the file.

    Raises:
        FileNotFoundError: If there is no such file.
        FileFormatError: If it is damaged, altered, foreign, or of another kind or version, or if network and decision process don't fit.
    """
    metadata, tensors = read_file(path, CONTROLLER_KIND)
    try:
        mdp = MDP(**metadata["mdp"])
        architecture, kind = metadata["architecture"], metadata.get("policy", "perceptron")
        if kind not in POLICIES:
            raise unknown_name("policy", kind, POLICIES)
        # Checked before the network is built, so that a file cannot claim more memory than it brings.
        expected = POLICIES[kind].expected_shapes(architecture, most_layers=len(tensors))
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"its tensors {found} do not fit its architecture {expected}")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("some of its weights are no finite numbers")
        with preserved_global_generators(), isolated():
            policy = POLICIES[kind](**architecture)
        policy.load_state_dict(tensors)
        _check_fit(policy, mdp)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise FileFormatError(f"{os.fspath(path)} is damaged: {error}. Save the controller again.") from error
    return BoundController(policy, mdp)


def _check_fit(policy: PolicyNetwork | RecurrentPolicy, mdp: MDP) -> None:
    """Raises a ValueError where the network can't be the decision process's; how many groups a model has is not known here."""
    process = mdp.begin(1, 1, 0.0)
    space, (num_features,) = process.action_space, process.observation_space.shape or ()
    num_choices = int(space.n) if isinstance(space, gym.spaces.Discrete) else None
    if isinstance(policy, PolicyNetwork):
        is_of_kind, num_actions = (policy.output == "argmax") == (num_choices is not None), policy.num_actions
    else:
        is_of_kind, num_actions = isinstance(process.action, RateAction), 1
    num_groups = 1 if mdp.lr_groups == "global" else max(1, policy.num_features // num_features)
    expected = num_groups * num_features, num_groups * (num_choices or process.num_actions)
    if not is_of_kind or (policy.num_features, num_actions) != expected:
        raise ValueError(
            f"a network from {policy.num_features} features to {num_actions} actions does not fit the decision process, which has {expected[0]} "
            f"features, {expected[1]} actions and action={mdp.action!r}"
        )


class SharedGroupController:
    """One policy for all parameter groups: what a controller of one group decides for each group on its own features.

    Observations ``(N, G · F)`` of an environment with ``lr_groups`` become ``(N · G, F)``; the policy's actions ``(N · G, K)``, a rate and
    perhaps a momentum, become ``(N, K · G)``: the rates of all groups, then the momenta. A recurrent state has leading dimension N · G.

    Args:
        controller: For observations ``(N, F)``.
        num_groups: G.

    Raises:
        TypeError: If the controller has no method ``predict``.
        ValueError: If there is no group.
    """

    def __init__(self, controller: Controller, num_groups: int) -> None:
        if not callable(getattr(controller, "predict", None)):
            advice = "pass its attribute `controller`" if isinstance(controller, BoundController) else "see lr_env.controllers.Controller"
            raise TypeError(f"A controller with a method predict is needed, but {type(controller).__name__} was given: {advice}.")
        self.controller, self.num_groups = controller, positive_integer("num_groups", num_groups)

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """See :class:`Controller`; one observation ``(G · F,)`` gives one action ``(K · G,)``.

        Raises:
            ValueError: If observations can't be divided among the groups, or the policy gives another number of actions.
        """
        observations = np.atleast_2d(observation)
        if observations.ndim != 2 or observations.shape[1] % self.num_groups != 0:
            given = f"{observations.shape[1]} features" if observations.ndim == 2 else f"shape {observations.shape}"
            raise ValueError(f"Observations of {given} can't be divided among {self.num_groups} parameter groups.")
        num_members = len(observations)
        starts = None if episode_start is None else np.repeat(np.reshape(episode_start, num_members), self.num_groups)
        of_groups = observations.reshape(num_members * self.num_groups, -1)
        actions, state = self.controller.predict(of_groups, state, starts, deterministic=deterministic)
        if np.shape(actions)[:1] != (num_members * self.num_groups,):
            raise ValueError(
                f"{type(self.controller).__name__} must give {num_members * self.num_groups} actions for as many observations, one of each of "
                f"{self.num_groups} parameter groups, but gave an array of shape {np.shape(actions)}."
            )
        actions = np.asarray(actions).reshape(num_members, self.num_groups, -1).swapaxes(1, 2).reshape(num_members, -1)
        return (actions if np.ndim(observation) == 2 else actions[0]), state
