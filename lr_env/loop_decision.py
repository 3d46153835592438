"""A whole step of a controller in one call of C++: with ``ControllerLR(compile=True)`` a loop is measured and observed, and a perceptron decides.

After a backward pass, which leaves the caches to other data, Python takes several times as long for what it does between the parts as they do. These
are functions that are there already: the kernel that measures the loop, and the recorded decision process. The perceptron is written out.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from importlib import resources
from typing import Any

import numpy as np
import torch

from lr_env.controllers import PolicyNetwork, State
from lr_env.mdp import DecisionProcess
from lr_env.mdp.recording import Recording
from lr_env.training.loop_kernel import SIGNALS
from lr_env.training.torch_directions import LoopSignals

OUTPUTS = ("tanh", "clip", "argmax")
"""Of a :class:`PolicyNetwork`, in the order of ``Output`` in ``loop_decision.cpp``."""


class Outcome(IntEnum):
    """Of a step; of the same name in ``loop_decision.cpp``."""

    DECIDED = 0
    SIGNALS_NOT_FINITE = 1
    ACTION_NOT_FINITE = 2


class _Layer(ctypes.Structure):
    _fields_ = [("inputs", ctypes.c_int64), ("outputs", ctypes.c_int64), ("weights", ctypes.c_void_p), ("biases", ctypes.c_void_p)]


class _LoopDecision(ctypes.Structure):
    """Of the same name in ``loop_decision.cpp``."""

    _fields_ = [
        ("measure", ctypes.c_void_p),
        ("parameters", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("table", "rules", "observe", "of_observing", "act", "of_acting", "totals")),
        *((name, ctypes.c_int64) for name in ("groups", "num_products", "num_columns")),
        *((name, ctypes.c_void_p) for name in ("columns", "signals", "observation")),
        *((name, ctypes.c_int64) for name in ("num_features", "num_layers")),
        ("layers", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("has_tanh", "output")),
        *((name, ctypes.c_void_p) for name in ("means", "count", "values", "actions", "lowest", "highest")),
    ]


class LoopDecision:
    """Steps of a loop after its first one.

    Args:
        signals: That measure it, with a kernel.
        observe: Recording of what is done with the signals, made to be repeated in C++; its result is the observation.
        act: Recording of what is done with the actions, so too.
        process: Whose actions they are.
        policy: What decides, for which :func:`can_decide`.

    Attributes:
        observation: What was observed last, ``(1, F)``, written over the next time.
    """

    def __init__(self, signals: LoopSignals, observe: Recording, act: Recording, process: DecisionProcess, policy: PolicyNetwork) -> None:
        from torch._inductor.codecache import CppCodeCache  # here, as it takes a second to import

        kernel = signals.kernel
        assert kernel is not None and observe.kernel is not None and act.kernel is not None
        self._take_step = CppCodeCache.load(resources.files(__package__).joinpath("loop_decision.cpp").read_text()).take_step
        self._take_step.argtypes = [ctypes.c_void_p, ctypes.c_double, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
        self._take_step.restype = ctypes.c_int
        self._policy = policy
        self._state: State = None
        self._addresses: list[int] = []
        self._tensors: list[list[torch.Tensor]] = []
        self.observation: np.ndarray = observe.results[0]
        self._layers = (_Layer * len(policy.affine()))()
        widths = [tuple(weights.shape) for weights, _ in policy.affine()]
        self._widest = max(max(shape) for shape in widths)
        bounds = process.lowest_action, process.highest_action
        lowest, highest = (np.full(process.num_actions, bound, np.float64) for bound in bounds)
        totals, columns = np.zeros((kernel.num_groups, len(SIGNALS))), np.array(signals.columns, np.int64)
        values = np.zeros((2, self._widest), np.float32)
        self._kept: list[Any] = [signals, observe, act, lowest, highest, totals, columns, values]  # what is pointed at
        own = self._own = _LoopDecision()
        own.measure, own.parameters, own.table, own.rules = kernel.call
        own.observe, own.of_observing = observe.kernel.addresses
        own.act, own.of_acting = act.kernel.addresses
        own.totals, own.columns, own.values, own.lowest, own.highest = (each.ctypes.data for each in (totals, columns, values, lowest, highest))
        own.groups, own.num_products, own.num_columns = kernel.num_groups, len(SIGNALS), len(columns)
        own.signals, own.observation, own.actions = (each.ctypes.data for each in (observe.input(0), self.observation, act.input(0)))
        own.num_features, own.num_layers, own.layers = policy.num_features, len(self._layers), ctypes.addressof(self._layers)
        own.has_tanh, own.output = policy.activation == "tanh", OUTPUTS.index(policy.output)
        self._address = ctypes.addressof(own)

    def __call__(self, loss: float, state: State, decides: bool) -> int:
        """A step that the signals are prepared for, an :class:`Outcome`; the table has what it leads to.

        Args:
            loss: Of the minibatch.
            state: Of the policy, which is changed in place where it decides.
            decides: Whether it does; otherwise the rates stay.
        """
        affine = self._policy.affine()
        addresses = [tensor.data_ptr() for pair in affine for tensor in pair]
        if addresses != self._addresses:
            # The same memory, but where somebody has given the policy tensors of another kind.
            self._addresses, self._tensors = addresses, [[each.detach().to("cpu", torch.float32).contiguous() for each in pair] for pair in affine]
            for layer, (weights, biases) in zip(self._layers, self._tensors, strict=True):
                layer.outputs, layer.inputs = weights.shape
                layer.weights, layer.biases = weights.data_ptr(), biases.data_ptr()
        if state is not self._state:
            self._state = state
            self._own.means, self._own.count = (None, None) if state is None else (each.ctypes.data for each in state)
        outcome: int = self._take_step(self._address, loss, decides, torch.get_num_threads(), self._widest)
        return outcome


def can_decide(policy: object) -> bool:
    """Whether a controller is a perceptron that C++ can read."""
    return type(policy) is PolicyNetwork and all(
        tensor.dtype is torch.float32 and tensor.is_cpu and tensor.is_contiguous() for pair in policy.affine() for tensor in pair
    )
