"""A conformance suite for one's own tasks: :func:`check_task` says in words what is wrong with one."""

from __future__ import annotations

import random
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor, nn

from lr_env.checks import positive_integer
from lr_env.env import LearningRateEnv
from lr_env.episodes import find_family
from lr_env.seeding import Streams, preserved_global_generators, seed_global_generators
from lr_env.tasks import Data, Sampler, Task, TaskFamily
from lr_env.tasks.task import SPLITS, ExampleFunction, Split
from lr_env.vector_env import LearningRateVectorEnv

NUM_STEPS = 20
"""SGD steps within which training must lower the loss."""

POLYAK_FRACTIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Rates tried, in units of Polyak's step (ℓ − b) / ‖g‖² at the start, which fits any scale of the loss."""

NUM_COMPARED_STEPS = 5
"""SGD steps over which trainings are compared."""

NUM_COMPARED_EXAMPLES = 8
"""Examples whose losses are computed together and one by one."""

TOLERANCE = 1e-3
"""Relative; rounding in float32 stays below it, mistakes do not."""


class TaskError(ValueError):
    """A task breaks a rule that environments rely on. The message lists all problems that were found."""


def check_task(task: str | Task | TaskFamily, *, max_variants: int = 4) -> list[str]:
    """Checks model, loss, data, gradients, training and environments of a task; takes seconds for a small one.

    Problems of model, loss and data are reported together; only without any are training and environments tried.

    Args:
        task: A task, a family, or a registered name.
        max_variants: Variants of a family that are checked, the first ones.

    Returns:
        Remarks: what is allowed, but good to know.

    Raises:
        TaskError: If something is wrong; the message lists what, and what to do.
        TypeError: If ``task`` is none of these.
        ValueError: If the name is unknown.
    """
    family = find_family(task)
    num_checked = min(family.num_variants, positive_integer("max_variants", max_variants))
    remarks = []
    for index in range(num_checked):
        variant = family.variants[index]
        where = f"variant {index} of {family.name!r}" if family.num_variants > 1 else repr(variant.name)
        found = _check_variant(variant, family.variant(index), where)
        remarks += [f"Variant {index}: {remark}" for remark in found] if family.num_variants > 1 else found
    if num_checked < family.num_variants:
        remarks.append(f"{num_checked} of {family.num_variants} variants were checked; max_variants= checks more.")
    return remarks


@dataclass
class _Findings:
    """What the checks of one task found."""

    errors: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def require(self, holds: bool, message: str) -> None:
        if not holds:
            self.errors.append(message)

    def remark(self, applies: bool, message: str) -> None:
        if applies:
            self.remarks.append(message)


Check: TypeAlias = Callable[[Task, _Findings], None]


def _check_variant(task: Task, family: TaskFamily, where: str) -> list[str]:
    """Remarks on one task, and on the family of which it is the only variant."""

    def check_environments(_: Task, findings: _Findings) -> None:
        _check_environments(task, family, findings)

    stages: Sequence[Sequence[Check]] = (
        (_check_initialisation, _check_training_mode, _check_evaluation_mode, _check_examples, _check_splits, _check_sampler),
        (_check_gradients,),
        (_check_learning, _check_engines),
        (check_environments,),
    )
    findings = _Findings()
    before = _generator_states(), _fingerprint(task)
    for number, stage in enumerate(stages, start=1):
        for check in stage:
            try:
                check(task, findings)
            except Exception as error:  # a task can fail in any way
                findings.errors.append(f"An error in {check.__name__.removeprefix('_').replace('_', ' ')}: {type(error).__name__}: {error}")
        if findings.errors:
            later = " Later checks need these solved; call check_task again." if number < len(stages) else ""
            problems = "\n".join(f"- {error}" for error in findings.errors)
            raise TaskError(f"Task {where} has {len(findings.errors)} problem(s):\n{problems}\n{later}".rstrip())
    after = _generator_states(), _fingerprint(task)
    if before[0] != after[0]:
        raise TaskError(f"Task {where} changes the global generators of random, NumPy or PyTorch. Draw from them in model() and forward() only.")
    if before[1] != after[1]:
        raise TaskError(f"Training changes the data of task {where}. Don't change inputs and targets in place.")
    return findings.remarks


# ---- model, loss and data ------------------------------------------------------------------------------------------------------


def _check_initialisation(task: Task, findings: _Findings) -> None:
    first, second, other = (task.make_model(np.random.SeedSequence(seed)) for seed in (0, 0, 1))
    if first is second:
        findings.errors.append(
            "The model function returns the same module every time, so that trainings would share their weights. "
            "Make a new one in the function, or give the module itself as the model."
        )
        return
    tensors, same, others = _tensors(first), _tensors(second), _tensors(other)
    shapes = [{name: tuple(value.shape) for name, value in part.items()} for part in (tensors, same, others)]
    if shapes[0] != shapes[1] or shapes[0] != shapes[2]:
        findings.errors.append("Parameters and buffers must have the same names and shapes in all models of a task, but they differ between two.")
        return
    differing = [name for name in tensors if not _same_bits(tensors[name], same[name])]
    findings.require(
        not differing,
        f"The model is not reproducible from its seed: {', '.join(map(repr, differing))} differ between two models made from one seed. "
        "Draw initial weights as torch.nn.init does, from the global generators, which are seeded around the call; "
        "not from os.urandom, the time or a generator of your own.",
    )
    states = []
    with preserved_global_generators():
        for seed in (0, 1):
            seed_global_generators(np.random.SeedSequence(seed))
            task.initialise()
            states.append(_generator_states())
    for library in states[0]:
        findings.require(
            states[0][library] != states[1][library],
            f"The model function seeds the global generator of {library}, so that all trainings would start alike. "
            "Remove the call: lr-env seeds it from the training's seed.",
        )
    findings.remark(
        all(_same_bits(tensors[name], others[name]) for name in tensors),
        "The initial weights do not depend on the seed: trainings differ by their data alone.",
    )


def _check_training_mode(task: Task, findings: _Findings) -> None:
    inputs, targets = next(task.batches(0))
    model = task.make_model(np.random.SeedSequence(0))
    passes = [_forward(task, model, inputs, targets, seed) for seed in (0, 0, 1)]
    first, again, other = passes
    findings.require(
        _same_bits(first.losses, again.losses),
        "Model or loss are not reproducible in training: with the same weights, buffers, inputs and global generators they give other losses "
        "each time. Keep what changes in buffers, and draw from PyTorch's global generator (torch.rand, nn.Dropout), not from one of your own.",
    )
    for library in first.before:
        if library != "PyTorch":
            findings.require(
                first.before[library] == first.after[library],
                f"Model or loss draw from the global generator of {library} in training. Draw from PyTorch's: each training has its own.",
            )
        findings.require(
            first.after[library] != other.after[library],
            f"Model or loss seed the global generator of {library} in training. Remove the call: lr-env seeds it from the training's seed.",
        )
    _check_inputs_kept(first, findings)
    half = len(inputs) // 2
    if half and _same_bits(first.losses, again.losses):
        others = next(task.batches(1))
        mixed = [torch.cat([own[:half], foreign[half:]]) for own, foreign in zip((inputs, targets), others, strict=True)]
        neighbours = _forward(task, model, mixed[0], mixed[1], 0)
        findings.remark(
            not _agree(first.losses[:half], neighbours.losses[:half]),
            "In training, an example's loss depends on the others of its minibatch, as with BatchNorm: gradients of single examples don't exist.",
        )


def _check_evaluation_mode(task: Task, findings: _Findings) -> None:
    inputs, targets = _examples(task, NUM_COMPARED_EXAMPLES)
    model = task.make_model(np.random.SeedSequence(0)).eval()
    together = _forward(task, model, inputs, targets, 0)
    for library in together.before:
        findings.require(
            together.before[library] == together.after[library],
            f"Model or loss draw from or seed the global generator of {library} in evaluation, so that a loss would differ from call to call. "
            "Draw only where self.training is True, as nn.Dropout does.",
        )
    _check_inputs_kept(together, findings)
    rows = [slice(i, i + 1) for i in range(len(inputs))]
    for name, function in _losses(task).items():
        if isinstance(together.outputs, Tensor):
            with preserved_global_generators(), torch.no_grad():
                whole = function(together.outputs, targets)
                singly = torch.cat([function(together.outputs[row], targets[row]).reshape(-1) for row in rows])
            if not _agree(whole, singly):
                findings.errors.append(
                    f"The {name} is not per example: an example's loss changes with the others of its minibatch. "
                    "Don't normalise, rank or average over the first dimension; the mean over it is taken afterwards."
                )
                return
    try:
        alone = torch.cat([_forward(task, model, inputs[row], targets[row], 0).losses.reshape(-1) for row in rows])
    except Exception as error:
        findings.errors.append(
            f"In evaluation, model and loss do not accept a single example ({type(error).__name__}: {error}), "
            "but splits are evaluated in parts of any size. Avoid squeeze() without a dimension, and fixed batch sizes."
        )
        return
    findings.remark(
        not _agree(together.losses, alone),
        "In evaluation, an example's output depends on the others beside it (BatchNorm without running statistics?): "
        "losses and metrics of a split depend on how it is divided.",
    )


def _check_examples(task: Task, findings: _Findings) -> None:
    """Losses and metric of the initial model."""
    model = task.make_model(np.random.SeedSequence(0)).eval()
    inputs, targets = _examples(task, 16 * NUM_COMPARED_EXAMPLES)
    with preserved_global_generators(), torch.no_grad():
        outputs = model(inputs)
        for name, function in _losses(task).items():
            losses = function(outputs, targets)
            if losses.shape != (len(inputs),):
                findings.errors.append(f"The {name} must return one value per example, ({len(inputs)},), but returned {tuple(losses.shape)}.")
                continue
            is_finite = torch.isfinite(losses)
            findings.require(
                bool(is_finite.all()),
                f"The {name} is not finite before any training, for {int((~is_finite).sum())} of {len(inputs)} examples. "
                "Look for logarithms and divisions of zero; scale inputs or initial weights down.",
            )
        observed = task.loss if task.observed_loss is None else task.observed_loss
        _check_bound(task, observed(outputs, targets), findings)  # type: ignore[operator]  # a name is resolved by the task
        if task.metric is not None:
            values = task.metric.function(outputs, targets)
            expected = f"({len(inputs)},)" if task.metric.summary is None else f"({len(inputs)},) or ({len(inputs)}, K)"
            is_right = isinstance(values, Tensor) and values.dim() in ((1,) if task.metric.summary is None else (1, 2)) and len(values) == len(inputs)
            given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            findings.require(
                is_right, f"The metric {task.metric.name!r} must return one value per example, {expected}, not their mean, but returned {given}."
            )
            if is_right and task.metric.summary is not None:
                summary = task.metric.summary(values.double().reshape(len(inputs), -1).mean(0).expand(2, -1))
                findings.require(
                    summary.shape == (2,),
                    f"The summary of metric {task.metric.name!r} must turn means (N, K) of N models into N numbers, "
                    f"but returned {tuple(summary.shape)} for 2 models.",
                )


def _check_splits(task: Task, findings: _Findings) -> None:
    if not isinstance(task.data, Data):
        return
    use = {"validation": 'reward_on="validation" and choosing a rate on validation data', "test": "benchmarks and evaluate('test')"}
    splits: dict[str, Split] = {name: getattr(task.data, name) for name in SPLITS}
    for name, purpose in use.items():
        findings.remark(len(splits[name]) == 0, f"There are no {name} data: {purpose} are not possible.")
    for name, split in splits.items():
        _check_labels(task, name, split, findings)
    # Hashes in place of the examples: a large data set would be held twice.
    rows = {name: {hash(row.tobytes()) for row in _bytes(split.inputs)} for name, split in splits.items()}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = len(rows[first] & rows[second])
        findings.remark(shared > 0, f"{first} and {second} data share {shared} identical inputs: results on {second} data are too good.")


def _check_labels(task: Task, name: str, split: Split, findings: _Findings) -> None:
    """Model and loss on the examples with the lowest and the highest label of a split, which may be rare."""
    if len(split) == 0 or split.targets.is_floating_point() or split.targets.dtype == torch.bool:
        return
    labels = split.targets.flatten(1) if split.targets.dim() > 1 else split.targets.unsqueeze(1)
    extremes = [int(labels.amin(1).argmin()), int(labels.amax(1).argmax())]
    model = task.make_model(np.random.SeedSequence(0)).eval()
    with preserved_global_generators(), torch.no_grad():
        for kind, function in _losses(task).items():
            try:
                function(model(split.inputs[extremes]), split.targets[extremes])
            except Exception as error:
                findings.errors.append(
                    f"The {kind} fails on {name} examples {extremes}, whose labels are the lowest and the highest, {int(labels.min())} and "
                    f"{int(labels.max())}: {type(error).__name__}: {error} Number the classes from 0, or give the model more outputs."
                )


def _check_sampler(task: Task, findings: _Findings) -> None:
    if not isinstance(task.data, Sampler):
        return
    sample, reference = task.data.sample, task.data.reference

    def draw(*counts: int) -> tuple[Tensor, Tensor]:
        generator = np.random.default_rng(0)
        parts = [sample(generator, count) for count in counts]
        return torch.cat([inputs for inputs, _ in parts]), torch.cat([targets for _, targets in parts])

    with preserved_global_generators():
        before = _generator_states()
        whole, again, parts = draw(5), draw(5), draw(2, 3)
        findings.require(
            before == _generator_states(), "The sampler draws from global generators. Draw from the generator that it is given, and from no other."
        )
    for name, drawn, repeated, divided, expected in zip(
        ("inputs", "targets"), whole, again, parts, (reference.inputs, reference.targets), strict=True
    ):
        findings.require(len(drawn) == 5, f"The sampler was asked for 5 examples, but returned {len(drawn)} {name}.")
        findings.require(
            drawn.shape[1:] == expected.shape[1:],
            f"The sampler's {name} have shape {tuple(drawn.shape[1:])} each, those of its reference examples {tuple(expected.shape[1:])}.",
        )
        if not _same_bits(drawn, repeated):
            findings.errors.append(f"The sampler's {name} differ between two draws with one seed. Draw from the generator that it is given.")
        elif not _same_bits(drawn, divided):
            findings.errors.append(
                f"Drawing 2 and then 3 of the sampler's {name} gives others than drawing 5 at once. Draw all numbers of one example before those "
                "of the next, such as generator.standard_normal((count, numbers_per_example))."
            )


# ---- training ------------------------------------------------------------------------------------------------------------------


@dataclass
class _History:
    """Losses ``(T + 1,)``, the squared norm of the first gradient, and whether each parameter ever had one that was not zero."""

    losses: list[float]
    first_norm_squared: float
    has_gradient: dict[str, bool]


def _check_gradients(task: Task, findings: _Findings) -> None:
    history = _train_plainly(task, 0, lambda first: _polyak_step(task, first) * POLYAK_FRACTIONS[2], NUM_COMPARED_STEPS)
    _check_bound(task, torch.tensor(history.losses), findings)
    if not np.isfinite(history.first_norm_squared):
        findings.errors.append(
            "The first gradient is not finite, although the loss is. Look for square roots and norms at zero; add a small number inside of them."
        )
    elif history.first_norm_squared == 0:
        findings.errors.append(
            "The first gradient is zero in all parameters: nothing can be learned. Look for detach(), rounding, argmax or saturated activations "
            "between parameters and loss, and for weights that are all zero."
        )
    else:
        idle = [name for name, has_gradient in history.has_gradient.items() if not has_gradient]
        findings.remark(
            bool(idle),
            f"Parameters {', '.join(map(repr, idle))} never had a gradient in {NUM_COMPARED_STEPS} steps. Does forward() use them?",
        )


def _check_learning(task: Task, findings: _Findings) -> None:
    first = _train_plainly(task, 0, lambda _: 0.0, 0)
    if first.losses[0] <= task.loss_lower_bound:
        findings.remarks.append("The first loss is at its lower bound already: nothing is left to be learned.")
        return
    rates = np.array(POLYAK_FRACTIONS)[:, None] * _polyak_step(task, first)  # (N, 1)
    num_members = len(rates)
    env = LearningRateVectorEnv(num_members, task, NUM_STEPS, action="rate", reward="loss", reward_on="final")
    env.reset(seed=[0] * num_members)
    returns, ended, losses = np.zeros(num_members), np.zeros(num_members, bool), []
    for _ in range(NUM_STEPS):
        _, rewards, terminated, truncated, info = env.step(rates)
        returns += np.where(ended, 0.0, rewards)
        losses.append(np.where(ended | info["diverged"], np.inf, info["loss"]))
        ended |= terminated | truncated
        if ended.all():
            break
    _check_bound(task, torch.from_numpy(np.array(losses)), findings)
    given = ", ".join(f"{float(rate):.1e}" for rate in rates[:, 0])
    findings.require(
        bool((returns > 0).any()),
        f"SGD does not lower the loss within {NUM_STEPS} steps with any of the rates {given}. Compare gradients with finite differences, "
        "as torch.autograd.gradcheck does; look at targets that inputs can't predict, and at the scale of inputs.",
    )


def _check_engines(task: Task, findings: _Findings) -> None:
    """Compares both environments with the loop that anybody would write, and says which engine a vector environment has."""
    rate = _polyak_step(task, _train_plainly(task, 0, lambda _: 0.0, 0)) * POLYAK_FRACTIONS[2]
    expected = np.array([_train_plainly(task, seed, lambda _: rate, NUM_COMPARED_STEPS).losses for seed in (0, 1)])  # (2, T + 1)
    single = LearningRateEnv(task, NUM_COMPARED_STEPS + 1, action="rate")
    vector = LearningRateVectorEnv(2, task, NUM_COMPARED_STEPS + 1, action="rate")
    alone = _roll_out(single, np.full((NUM_COMPARED_STEPS, 1), rate), 0)
    together = _roll_out(vector, np.full((NUM_COMPARED_STEPS, 2, 1), rate), [0, 1])
    engine = vector.episodes.population.engine  # type: ignore[union-attr]  # one variant is one population
    if alone.has_ended or together.has_ended:
        findings.errors.append(
            f"A training with the small rate {rate:.1e} counts as diverged: the loss of a minibatch is far above that of the reference examples "
            "at the start. Are the reference examples of a sampler like those that it draws? Does evaluation differ from training?"
        )
        return
    for name, actual, wanted in (("single", alone.losses, expected[0]), (f"vector (engine: {engine})", together.losses.T, expected)):
        findings.require(
            np.allclose(actual, wanted, rtol=TOLERANCE, atol=TOLERANCE * float(np.abs(wanted).max())),
            f"The {name} environment trains otherwise than a plain PyTorch loop: losses {np.round(actual, 6).tolist()}, expected "
            f"{np.round(wanted, 6).tolist()}. Change buffers in place (self.count += 1, not self.count = self.count + 1).",
        )
    if engine == "looped":
        try:
            LearningRateVectorEnv(2, task, 2, gradients="batched").reset(seed=0)
            reason = "it has convolutions, or keeps much for its backward pass, and is faster so"
        except ValueError as error:
            reason = str(error)
        findings.remarks.append(f"Vector environments train one member after another (engine: looped): {reason}")


# ---- environments --------------------------------------------------------------------------------------------------------------


@dataclass
class _Rollout:
    """What an environment returned, step by step, losses from the reset on; and whether an episode ended."""

    observations: np.ndarray
    rewards: np.ndarray
    losses: np.ndarray
    has_ended: bool

    def equals(self, other: _Rollout) -> bool:
        """Bit for bit, NaN included."""
        return all(getattr(self, name).tobytes() == getattr(other, name).tobytes() for name in ("observations", "rewards", "losses"))


def _check_environments(task: Task, family: TaskFamily, findings: _Findings) -> None:
    rate = _polyak_step(task, _train_plainly(task, 0, lambda _: 0.0, 0)) * POLYAK_FRACTIONS[1]
    rates: Any = {"initial_rate": rate, "lr_min": rate / 10, "lr_max": 10 * rate}
    env = gym.make("LearningRate-v0", task=family, horizon=2 * NUM_COMPARED_STEPS + 1, **rates).unwrapped
    assert isinstance(env, LearningRateEnv)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(env, skip_render_check=True)
        except AssertionError as error:
            findings.errors.append(f"Gymnasium's check_env does not accept the environment: {error}")
    findings.remarks += [f"Gymnasium's check_env: {warning.message}" for warning in caught]
    actions = np.zeros((NUM_COMPARED_STEPS, 1))
    first = _roll_out(env, actions, 0)
    state = env.get_state()  # in the middle of the training
    future = _roll_out(env, actions, None)
    env.set_state(state)
    findings.require(
        future.equals(_roll_out(env, actions, None)),
        "get_state() and set_state() do not reproduce the future of a training. Does the model keep something beside parameters and buffers?",
    )
    findings.require(
        first.equals(_roll_out(env, actions, 0)),
        "Two trainings with the same seed differ. Do model, loss or sampler keep something from one call to the next?",
    )


def _roll_out(env: Any, actions: np.ndarray, seed: int | list[int] | None) -> _Rollout:
    """Takes actions ``(T, …)``, until an episode ends, after a reset with a seed, or without one as things stand."""
    observations, rewards, losses, has_ended = [], [], [], False
    if seed is not None:
        observation, info = env.reset(seed=seed)
        observations.append(observation)
        losses.append(info["loss"])
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        losses.append(info["loss"])
        has_ended = bool(np.any(terminated) or np.any(truncated))
        if has_ended:
            break
    return _Rollout(np.array(observations), np.array(rewards), np.array(losses), has_ended)


# ---- helpers -------------------------------------------------------------------------------------------------------------------


@dataclass
class _Pass:
    """One forward pass: outputs, losses ``(B,)``, the global generators before and after, and whether inputs and targets were kept."""

    outputs: Any
    losses: Tensor
    before: dict[str, Any]
    after: dict[str, Any]
    keeps_inputs: bool
    keeps_targets: bool


def _forward(task: Task, model: nn.Module, inputs: Tensor, targets: Tensor, seed: int) -> _Pass:
    """Runs model and loss from this state of the global generators; the model's buffers stay as they are."""
    own_inputs, own_targets = inputs.clone(), targets.clone()
    with preserved_global_generators(), _kept(model), torch.no_grad():
        seed_global_generators(np.random.SeedSequence(seed))
        before = _generator_states()
        outputs = model(own_inputs)
        losses = task.loss(outputs, own_targets)  # type: ignore[operator]  # a name is resolved by the task
        after = _generator_states()
    return _Pass(outputs, losses, before, after, _same_bits(inputs, own_inputs), _same_bits(targets, own_targets))


def _check_inputs_kept(made: _Pass, findings: _Findings) -> None:
    for name, is_kept in (("inputs", made.keeps_inputs), ("targets", made.keeps_targets)):
        message = f"Model or loss change their {name} in place, and so the data. Use operations without a trailing underscore, or clone() first."
        if not is_kept and message not in findings.errors:
            findings.errors.append(message)


def _train_plainly(task: Task, seed: int, choose_rate: Callable[[_History], float], num_steps: int) -> _History:
    """T steps of SGD as anybody would write them; the rate is chosen after the first gradient."""
    batches = task.batches(seed)
    observe = task.loss if task.observed_loss is None else task.observed_loss
    with preserved_global_generators():
        seed_global_generators(Streams(seed).weights)
        model = task.initialise()
        history = _History([], 0.0, dict.fromkeys(dict(model.named_parameters()), False))
        rate = 0.0
        for step in range(num_steps + 1):
            inputs, targets = next(batches)
            model.zero_grad()
            outputs = model(inputs)
            task.loss(outputs, targets).mean().backward()  # type: ignore[operator]  # a name is resolved by the task
            history.losses.append(float(observe(outputs, targets).mean().detach()))  # type: ignore[operator]
            gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
            for name, gradient in gradients.items():
                history.has_gradient[name] |= bool(gradient.any())
            if step == 0:
                history.first_norm_squared = float(sum(gradient.double().square().sum() for gradient in gradients.values()))
                rate = choose_rate(history)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(rate * parameter.grad)
    return history


def _polyak_step(task: Task, history: _History) -> float:
    """(ℓ − b) / ‖g‖² at the start."""
    return (history.losses[0] - task.loss_lower_bound) / max(history.first_norm_squared, 1e-30)


def _check_bound(task: Task, losses: Tensor, findings: _Findings) -> None:
    lowest, bound = float(losses.min()), task.loss_lower_bound
    findings.require(
        not lowest < bound - TOLERANCE * max(abs(bound), 1e-3),
        f"A loss of {lowest:.6g} is below loss_lower_bound={bound:g}. Give a bound that no loss can fall below.",
    )


def _losses(task: Task) -> dict[str, ExampleFunction]:
    named = {"loss": task.loss, "observed_loss": task.observed_loss}
    return {name: function for name, function in named.items() if callable(function)}


def _examples(task: Task, count: int) -> tuple[Tensor, Tensor]:
    """As many training examples as there are, up to ``count``."""
    if isinstance(task.data, Data):
        return task.data.train.inputs[:count].clone(), task.data.train.targets[:count].clone()
    return task.data.sample(np.random.default_rng(0), count)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())}


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers are afterwards as they were."""
    before = {name: value.clone() for name, value in _tensors(model).items()}
    yield
    with torch.no_grad():
        for name, value in _tensors(model).items():
            value.copy_(before[name])


def _generator_states() -> dict[str, Any]:
    """The states of the global generators, to be compared."""
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002  # the global one is meant
    return {
        "random": random.getstate(),
        "NumPy": (numpy_state["state"]["key"].tobytes(), numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]),
        "PyTorch": torch.get_rng_state().numpy().tobytes(),
    }


def _fingerprint(task: Task) -> list[int]:
    """Of the data."""
    splits = [getattr(task.data, name) for name in SPLITS] if isinstance(task.data, Data) else [task.data.reference]
    return [zlib.crc32(_bytes(values).data) for split in splits for values in (split.inputs, split.targets)]


def _bytes(values: Tensor) -> np.ndarray:
    """The bytes of tensors ``(M, …)`` of any dtype: ``(M, K)``, uint8."""
    array: np.ndarray = values.detach().contiguous().view(len(values), -1).view(torch.uint8).numpy() if values.numel() else np.zeros((0, 0), np.uint8)
    return array


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal, NaN included."""
    return first.shape == second.shape and torch.allclose(first.double(), second.double(), rtol=0, atol=0, equal_nan=True)


def _agree(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    scale = float(first.abs().nan_to_num(posinf=0).max()) if first.numel() else 0.0
    return first.shape == second.shape and torch.allclose(first, second, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True)
