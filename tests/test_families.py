"""Families as plain data, the two shipped ones, and what trainings draw: against loops that read like the formulas."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from lr_env import FamilySpecification, LearningRateVectorEnv, NoisyQuadratic, Task, TaskFamily, Variant, make_task
from lr_env.seeding import Streams
from lr_env.tasks import Data
from lr_env.tasks.datasets import DATASETS
from lr_env.tasks.families import SMALL, SMALL_HELD_OUT, SMALL_WIDE
from lr_env.tasks.models import mlp
from tests.rollouts import assert_same_bits, continue_with, roll_out, start, tiny_task

NOISE = (0.2, 0.6)
MIXED = {
    "name": "mixed",
    "data_sets": ["digits", "wine", "diabetes"],
    "architectures": ["mlp", "cnn"],
    "activations": ["relu", "tanh"],
    "depth": [0, 2],
    "width": [3, 20],
    "convolutions": [1, 2],
    "channels": [1, 3],
    "batch_size": [4, 40],
    "horizon": [5, 12],
    "optimizers": ["sgd", {"name": "momentum", "momentum": 0.5}, "adam"],
    "data_fraction": [0.3, 1.0],
    "input_scale_decades": [-0.5, 0.5],
    "initialisation_scale_decades": [-0.5, 0.5],
    "label_noise": [0.0, 0.4],
    "num_variants": 6,
    "family_seed": 2,
}


def varied(**options: Any) -> TaskFamily:
    """One tiny task with everything that a training can draw; a training sees 71 of 102 examples."""
    everything = {"input_scale_decades": (-0.5, 0.5), "initialisation_scale_decades": (-0.4, 0.4), "label_noise": NOISE}
    return TaskFamily("varied", Variant(tiny_task(), data_fraction=0.7), **{**everything, **options})


def child(seed: int, number: int, episode: int = 0) -> np.random.Generator:
    """The generator of a training's draws of one kind, as documented: child ``number`` of the family's stream."""
    return np.random.default_rng(Streams(seed, episode).family.spawn(number + 1)[number])


def labels_of(family: TaskFamily, seed: int, episode: int = 0) -> torch.Tensor:
    """The labels with noise, one at a time."""
    data = family.variants[0].data
    assert isinstance(data, Data)
    labels, generator = data.train.targets.clone(), child(seed, 1, episode)
    count = round(generator.uniform(*family.label_noise) * len(labels))
    chosen = generator.permutation(len(labels))[:count]
    for index, label in zip(chosen.tolist(), generator.integers(3, size=count).tolist(), strict=True):
        labels[index] = label
    return labels


def batches_of(family: TaskFamily, seed: int, num_epochs: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A training's batches by a loop over epochs of its own examples."""
    task, labels = family.variants[0], labels_of(family, seed)
    scale = 10 ** np.random.default_rng(Streams(seed).family).uniform(*family.input_scale_decades)
    own = torch.from_numpy(child(seed, 2).permutation(102)[:71])
    order = torch.Generator().manual_seed(int(Streams(seed).order.generate_state(1, np.uint64)[0]))
    batches = []
    for _ in range(num_epochs):
        shuffled = own[torch.randperm(71, generator=order)]
        for first in range(0, 71 - 16 + 1, 16):
            rows = shuffled[first : first + 16]
            batches.append((task.data.split("train").inputs[rows].double() * scale, labels[rows]))
    return batches


def initial_model(family: TaskFamily, seed: int) -> nn.Module:
    """The model of a training, its matrices scaled."""
    model, scale = family.variants[0].initial_model(seed).double(), 10 ** child(seed, 0).uniform(*family.initialisation_scale_decades)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter *= scale
    return model


def test_batches_equal_those_of_a_loop() -> None:
    family, seeds = varied(), [3, 8, 9]
    population = start(family, seeds)
    references = [batches_of(family, seed, 3) for seed in seeds]
    assert len(references[0]) == 12
    for step in range(12):
        inputs, targets = population.batches.current()
        for member, reference in enumerate(references):
            torch.testing.assert_close(inputs[member], reference[step][0], rtol=1e-12, atol=0)
            assert torch.equal(targets[member], reference[step][1])
        population.move_on()


def test_an_epoch_is_a_permutation_of_the_members_own_examples() -> None:
    family = TaskFamily("part", Variant(tiny_task(batch_size=17), data_fraction=0.5))
    population = start(family, [0, 1])
    everything = {row.double().numpy().tobytes() for row in family.variants[0].data.split("train").inputs}
    seen: list[list[set[bytes]]] = [[], []]
    for _ in range(3):  # epochs of 3 batches
        epoch: list[set[bytes]] = [set(), set()]
        for _ in range(3):
            for member, rows in enumerate(population.batches.current()[0]):
                epoch[member] |= {row.numpy().tobytes() for row in rows}
            population.move_on()
        for member in range(2):
            seen[member].append(epoch[member])
    for epochs in seen:
        assert len(epochs[0]) == 51 and epochs[0] == epochs[1] == epochs[2] <= everything
    assert seen[0][0] != seen[1][0]


def test_label_noise_has_its_share_and_differs_between_trainings() -> None:
    family = varied()
    clean = family.variants[0].data.split("train").targets
    drawn = [labels_of(family, seed, episode) for seed in range(40) for episode in range(2)]
    shares = np.array([(labels != clean).float().mean().item() for labels in drawn])
    # Of three classes, a third of the replacements is the true one.
    assert shares.min() >= 0 and shares.max() <= NOISE[1] and abs(shares.mean() - 2 / 3 * np.mean(NOISE)) < 0.03
    assert len({labels.numpy().tobytes() for labels in drawn}) == 80
    for seed in range(3):
        assert torch.equal(family.draw_labels(Streams(seed).family), labels_of(family, seed))
    exact = varied(label_noise=(1.0, 1.0)).draw_labels(Streams(0).family)
    assert set(exact.tolist()) == {0, 1, 2} and 0.5 < (exact != clean).float().mean() < 0.8
    assert torch.equal(clean, family.variants[0].data.split("train").targets)  # the task's own are as they were


def test_a_share_of_trainings_has_no_label_noise() -> None:
    family = varied(label_noise=(0.5, 1.0), noisy_fraction=0.3)
    clean = family.variants[0].data.split("train").targets
    drawn = [family.draw_labels(Streams(seed).family) for seed in range(300)]
    is_noisy = np.array([not torch.equal(labels, clean) for labels in drawn])
    assert abs(is_noisy.mean() - 0.3) < 0.06
    seed = int(np.flatnonzero(is_noisy)[0])
    generator = child(seed, 1)
    assert generator.random() < 0.3
    labels, count = clean.clone(), round(generator.uniform(0.5, 1.0) * len(clean))
    chosen = torch.from_numpy(generator.permutation(len(clean))[:count])
    labels[chosen] = torch.from_numpy(generator.integers(3, size=count))
    assert torch.equal(drawn[seed], labels)
    specification = FamilySpecification(label_noise=[0, 0.5], noisy_fraction=0.5)
    assert specification.family().noisy_fraction == 0.5 == FamilySpecification.from_dict(specification.to_dict()).noisy_fraction
    assert "noisy_fraction" not in FamilySpecification().to_dict()  # older digests stay as they are


def test_a_share_of_trainings_is_scaled() -> None:
    ranges = {"input_scale_decades": (-0.75, -0.5), "initialisation_scale_decades": (0.1, 0.3)}
    family, every = varied(scaled_fraction=0.3, **ranges), varied(**ranges)
    drawn, all_scaled = (
        np.array([(each.draw_input_scale(seed), each.draw_initialisation_scale(seed)) for seed in (Streams(number).family for number in range(300))])
        for each in (family, every)
    )
    is_scaled = (drawn != 1).any(1)
    assert abs(is_scaled.mean() - 0.3) < 0.06
    assert (drawn[~is_scaled] == 1).all() and (drawn[is_scaled] == all_scaled[is_scaled]).all()  # by the same factors
    assert (is_scaled == [child(seed, 3).random() < 0.3 for seed in range(300)]).all()
    specification = FamilySpecification(scaled_fraction=0.5)
    assert specification.family().scaled_fraction == 0.5 == FamilySpecification.from_dict(specification.to_dict()).scaled_fraction
    assert "scaled_fraction" not in FamilySpecification().to_dict()


def test_label_noise_of_numbers_takes_those_of_other_examples() -> None:
    task = Task("numbers", lambda: nn.Linear(1, 1), "mean_squared_error", _line(), batch_size=10)
    family = TaskFamily("noisy", task, label_noise=(0.5, 0.5))
    clean, noisy = task.data.split("train").targets, family.draw_labels(Streams(0).family)
    assert 0.4 < (noisy != clean).float().mean() <= 0.5
    assert set(noisy[:, 0].tolist()) <= set(clean[:, 0].tolist())
    population = start(family, [0])
    inputs, targets = population.batches.current()
    assert torch.equal(targets[0], noisy.double()[inputs[0, :, 0].long()])


def _line() -> Data:
    values = torch.arange(200.0).unsqueeze(1)
    part = replace(tiny_task().data.train, inputs=values, targets=values * 2)
    return Data(part, part, part)


def test_evaluations_use_true_labels() -> None:
    family = TaskFamily("noisy", tiny_task(), label_noise=(1.0, 1.0))
    noisy, plain = start(family, [4, 5]), start(tiny_task(), [4, 5])
    assert not torch.equal(noisy.batches.current()[1], plain.batches.current()[1])
    for split in ("train", "test"):
        np.testing.assert_array_equal(noisy.evaluate(split).losses, plain.evaluate(split).losses)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_matrices_are_scaled_and_vectors_are_not(dtype: str) -> None:
    family, seeds = varied(), [0, 6, 7]
    population = start(family, seeds, dtype=dtype)
    for member, seed in enumerate(seeds):
        expected = torch.cat([parameter.detach().ravel() for parameter in initial_model(family, seed).parameters()])
        torch.testing.assert_close(population.parameters[member].double(), expected, rtol=1e-6 if dtype == "float32" else 1e-12, atol=0)
    plain = start(tiny_task(), seeds, dtype=dtype).parameters
    is_bias = torch.cat([torch.full((p.numel(),), p.dim() < 2) for p in tiny_task().initial_model(0).parameters()])
    assert torch.equal(population.parameters[:, is_bias], plain[:, is_bias])
    scales = np.log10([family.draw_initialisation_scale(Streams(seed).family) for seed in range(300)])
    assert -0.4 <= scales.min() < -0.38 and 0.38 < scales.max() <= 0.4


def test_one_kind_of_draw_leaves_the_others_alone() -> None:
    names = ["input_scale_decades", "initialisation_scale_decades", "label_noise"]
    everything, seed = varied(), Streams(3).family
    for name in names:
        others = varied(**{name: (0.0, 0.0)})
        assert (name == names[0]) != (others.draw_input_scale(seed) == everything.draw_input_scale(seed))
        assert (name == names[1]) != (others.draw_initialisation_scale(seed) == everything.draw_initialisation_scale(seed))
        assert (name == names[2]) != torch.equal(others.draw_labels(seed), everything.draw_labels(seed))
        assert torch.equal(others.draw_examples(seed), everything.draw_examples(seed))
    assert everything.draw_input_scale(seed) == TaskFamily("alone", tiny_task(), (-0.5, 0.5)).draw_input_scale(seed)


def test_losses_of_a_whole_training_equal_a_loop() -> None:
    family, rates = varied(), [0.1, 0.3, 0.05, 0.2, 0.1]
    env = LearningRateVectorEnv(2, family, action="rate", dtype="float64")
    rollout = roll_out(env, np.tile(np.array(rates)[:, None, None], (1, 2, 1)), seed=11)
    for member in range(2):
        model, batches = initial_model(family, 11 + member), batches_of(family, 11 + member, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for step in range(6):
            loss = nn.functional.cross_entropy(model(batches[step][0]), batches[step][1])
            assert rollout.infos[step]["loss"][member] == pytest.approx(loss.item(), rel=1e-9)
            if step < 5:
                optimizer.zero_grad()
                loss.backward()
                optimizer.param_groups[0]["lr"] = rates[step]
                optimizer.step()


@pytest.mark.parametrize("compile_it", [False, True])
def test_members_equal_single_environments(compile_it: bool) -> None:
    family = varied()
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 3, 1))
    env = LearningRateVectorEnv(3, family, dtype="float64", compile=compile_it)
    together = roll_out(env, actions, seed=5)
    for member in range(3):
        alone = roll_out(LearningRateVectorEnv(1, family, dtype="float64"), actions[:, member : member + 1], seed=5 + member)
        np.testing.assert_allclose(np.array(together.rewards)[:, member], np.array(alone.rewards)[:, 0], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(together.values("loss")[:, member], alone.values("loss")[:, 0], rtol=1e-9)


def test_a_branch_keeps_labels_and_examples() -> None:
    env = LearningRateVectorEnv(3, varied(), dtype="float64", autoreset_mode="SameStep")
    actions = np.random.default_rng(1).uniform(-1, 1, (20, 3, 1))
    roll_out(env, actions[:3], seed=0)
    state = env.get_state()
    first = [env.step(action)[1] for action in actions[3:8]]  # to the end of the episode: the labels are drawn anew
    assert env.episodes.episode.tolist() == [1, 1, 1]
    env.set_state(state)
    np.testing.assert_array_equal([env.step(action)[1] for action in actions[3:8]], first)
    env.set_state(env.get_state([2, 2]), [0, 1])  # copies go on alike, through another epoch and the next episode too
    for _ in range(15):
        rewards = env.step(np.full((3, 1), 0.1))[1]
        assert rewards == pytest.approx([rewards[2]] * 3, rel=1e-12)


def test_same_bits_after_pickling() -> None:
    env = LearningRateVectorEnv(7, FamilySpecification.from_dict(MIXED).family())
    actions = np.random.default_rng(1).uniform(-1, 1, (20, 7, 1))
    roll_out(env, actions[:4], seed=0)
    copied = pickle.loads(pickle.dumps(env))
    results = [roll_out(each, [], seed=None) for each in (env, copied)]
    for each, result in zip((env, copied), results, strict=True):
        continue_with(each, actions, result)
    assert_same_bits(*results)


def test_each_variant_has_its_own_optimizer() -> None:
    family = FamilySpecification.from_dict(MIXED).family()
    assert {str(optimizer) for optimizer in family.optimizers} == {"sgd", "adam", "{'name': 'momentum', 'momentum': 0.5}"}
    for optimizer in ("sgd", "adam", {"name": "momentum", "momentum": 0.5}):
        variant = family.optimizers.index(optimizer)
        given = gym.make("LearningRate-v0", task=family, variant=variant, optimizer="nesterov")
        expected = gym.make("LearningRate-v0", task=replace(family.variant(variant), task=_without_optimizer(family, variant)), optimizer=optimizer)
        assert_same_bits(*(roll_out(env, [np.full(1, 0.5)] * 12, seed=3) for env in (given, expected)))
        assert given.unwrapped.mdp == expected.unwrapped.mdp
    env = LearningRateVectorEnv(6, family)
    assert env.mdp.optimizer == "sgd"  # the one given, as the variants have several
    _, info = env.reset(seed=0)
    defaults = {"sgd": 0.1, "adam": 1e-3}
    np.testing.assert_allclose(info["learning_rate"], [defaults.get(str(optimizer), 1e-2) for optimizer in family.optimizers])
    assert LearningRateVectorEnv(2, TaskFamily("one", Variant(tiny_task(), "adam"))).mdp.optimizer == "adam"


def _without_optimizer(family: TaskFamily, variant: int) -> Variant:
    return replace(family.variant(variant)._variants[0], optimizer=None)


def test_a_mixed_environment_equals_the_single_ones() -> None:
    env = gym.make_vec("LearningRate-v0", num_envs=8, task=MIXED, dtype="float64", autoreset_mode="Disabled")
    actions = np.random.default_rng(2).uniform(-1, 1, (4, 8, 1))
    together = roll_out(env, actions, seed=20)
    horizons = FamilySpecification.from_dict(MIXED).family().variants
    assert env.episodes.horizons.tolist() == [horizons[member % 6].horizon for member in range(8)]
    for member in range(8):
        alone = roll_out(gym.make("LearningRate-v0", task=MIXED, variant=member % 6, dtype="float64"), actions[:, member], seed=20 + member)
        np.testing.assert_allclose([reward[member] for reward in together.rewards], alone.rewards, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(together.values("loss")[:, member], alone.values("loss"), rtol=1e-8)
        np.testing.assert_allclose([row[member] for row in together.observations], alone.observations, rtol=1e-4, atol=1e-5)


def describe(family: TaskFamily) -> list[tuple[Any, ...]]:
    """What a variant is."""
    return [
        (task.name, task.batch_size, task.horizon, str(task.initial_model(0)), tuple(task.data.split("train").inputs.shape), optimizer)
        for task, optimizer in zip(family.variants, map(str, family.optimizers), strict=True)
    ]


def test_variants_are_reproducible_and_depend_on_their_number_alone() -> None:
    specification = FamilySpecification.from_dict(MIXED)
    first = describe(specification.family())
    assert first == describe(FamilySpecification.from_dict(MIXED).family()) == describe(pickle.loads(pickle.dumps(specification.family())))
    assert first == describe(replace(specification, num_variants=9).family())[:6] == describe(replace(specification.family(), num_variants=8))[:6]
    assert first != describe(replace(specification, family_seed=3).family())
    # One kind's range leaves the other kinds' draws alone.
    other = describe(replace(specification, horizon=[50, 90]).family())
    assert [(*row[:2], *row[3:]) for row in other] == [(*row[:2], *row[3:]) for row in first]
    assert all(50 <= row[2] <= 90 for row in other)


def test_variants_lie_within_their_ranges() -> None:
    family = FamilySpecification.from_dict(MIXED | {"num_variants": 60}).family()
    for variant in family._variants:
        task = variant.task
        assert (
            4 <= task.batch_size <= 40 and 5 <= task.horizon <= 12 and 0.3 <= variant.data_fraction <= 1 and task.batch_size <= variant.num_examples
        )
        data_set, architecture, shown, _ = task.name.split()
        if architecture == "cnn":
            assert data_set == "digits" and shown in ("1", "2", "3", "1-2", "2-4", "3-6")
        elif shown != "linear":
            assert all(3 <= int(width) <= 20 for width in shown.split("-")) and len(shown.split("-")) <= 2
    names = [task.name.split() for task in family.variants]
    assert {name[0] for name in names} == {"digits", "wine", "diabetes"} and {name[1] for name in names} == {"mlp", "cnn"}
    assert {str(name[2].count("-")) if name[2] != "linear" else "linear" for name in names if name[1] == "mlp"} == {"linear", "0", "1"}


def test_a_specification_goes_through_json() -> None:
    specification = FamilySpecification.from_dict(MIXED)
    data = json.loads(json.dumps(specification.to_dict()))
    assert data == MIXED and FamilySpecification.from_dict(data) == specification
    assert FamilySpecification.from_dict({}) == FamilySpecification() == FamilySpecification.from_dict(FamilySpecification().to_dict())
    for shipped in (SMALL, SMALL_HELD_OUT):
        assert FamilySpecification.from_dict(json.loads(json.dumps(shipped.to_dict()))) == shipped


@pytest.mark.parametrize("task", [MIXED, "small"])
def test_an_environment_goes_through_json(task: Any) -> None:
    env = gym.make("LearningRate-v0", task=task, variant=1)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert_same_bits(*(roll_out(each, [np.full(1, 0.3)] * 5, seed=4) for each in (env, again)))


def test_the_shipped_families_share_no_variant() -> None:
    for num_variants, seeds in ((None, (0,)), (60, (0, 1))):
        kinds = []
        for name in ("small", "small-heldout"):
            shipped = make_task(name)
            families = [replace(shipped, family_seed=seed, num_variants=num_variants or shipped.num_variants) for seed in seeds]
            kinds.append({(task.name.split()[0], str(task.initial_model(0))) for family in families for task in family.variants})
        assert len(kinds[0]) >= 18 and len(kinds[1]) >= 9
        assert not kinds[0] & kinds[1]
    # By construction: every model of the one has a non-linearity, of a kind that no model of the other has.
    trained_on = {*SMALL.activations, *SMALL_WIDE.activations}
    assert not trained_on & set(SMALL_HELD_OUT.activations) and SMALL_HELD_OUT.depth[0] >= 1


def test_the_shipped_families_are_diverse() -> None:
    small, wide, held_out = (make_task(name) for name in ("small", "small-wide", "small-heldout"))
    assert small.num_variants >= 24 and wide.num_variants >= 24 and held_out.num_variants >= 12
    for family in (small, wide, held_out):
        assert sum(" cnn " in task.name for task in family.variants) >= family.num_variants // 6
        assert max(task.horizon for task in family.variants) > 8 * min(task.horizon for task in family.variants)
    assert {task.name.split()[0] for task in small.variants} == {"digits", "breast-cancer", "wine"}
    assert {task.name.split()[0] for task in wide.variants} == {"digits", "breast-cancer", "wine", "iris", "clusters", "friedman"}
    assert "diabetes" in {task.name.split()[0] for task in held_out.variants}
    assert {name for name in (*SMALL.data_sets, *SMALL_WIDE.data_sets, *SMALL_HELD_OUT.data_sets) if name not in DATASETS} == set()


def test_the_shipped_family_runs_side_by_side() -> None:
    env = gym.make_vec("LearningRate-v0", num_envs=24, task="small")
    rollout = roll_out(env, np.zeros((3, 24, 1)), seed=0)
    assert np.isfinite(np.array(rollout.observations)).all() and (rollout.infos[-1]["step"] == 3).all()


@pytest.mark.parametrize(
    ("make_it", "error", "message"),
    [
        (lambda: FamilySpecification(data_sets=["digit"]), ValueError, "Unknown data_sets 'digit'. Did you mean 'digits'"),
        (lambda: FamilySpecification(data_sets="digits"), TypeError, "data_sets must be a list"),
        (lambda: FamilySpecification(data_sets=[]), ValueError, "data_sets must hold at least one of"),
        (lambda: FamilySpecification(architectures=["rnn"]), ValueError, "Unknown architectures 'rnn'"),
        (lambda: FamilySpecification(activations=["step"]), ValueError, "Unknown activations 'step'"),
        (lambda: FamilySpecification(depth=[-1, 2]), ValueError, "depth must be .* 0 <= low <= high, but \\[-1, 2\\]"),
        (lambda: FamilySpecification(width=[8, 4]), ValueError, "width must be \\[low, high\\]"),
        (lambda: FamilySpecification(horizon=[0.5, 4]), ValueError, "horizon must be \\[low, high\\], integers"),
        (lambda: FamilySpecification(batch_size=[8]), ValueError, "batch_size must be"),
        (lambda: FamilySpecification(label_noise=[0.1]), ValueError, "label_noise must be"),
        (lambda: FamilySpecification(label_noise=[0.1, 2]).family(), ValueError, "label_noise must be .* 0 <= low <= high <= 1"),
        (lambda: FamilySpecification(data_fraction=[0, 1]), ValueError, "data_fraction must be .* 0 < low"),
        (lambda: FamilySpecification(data_fraction=["a", 1]), TypeError, "data_fraction, \\(low, high\\), must be a number, but 'a'"),
        (lambda: FamilySpecification(label_noise=[0.1]), ValueError, "label_noise must be a pair"),
        (lambda: FamilySpecification(noisy_fraction=1.5), ValueError, "noisy_fraction must be within \\[0, 1\\], but 1.5"),
        (lambda: FamilySpecification(width=[True, True]), ValueError, "width must be \\[low, high\\], integers"),
        (lambda: FamilySpecification(data_sets=[["digits"]]), ValueError, "Unknown data_sets \\['digits'\\]"),
        (lambda: TaskFamily("f", tiny_task(), input_scale_decades=3), TypeError, "input_scale_decades must be a pair"),
        (lambda: TaskFamily("f", tiny_task(), initial_rate_decades=5), ValueError, "initial_rate_decades must be within \\[0, 4\\], but 5"),
        (lambda: Variant("a"), TypeError, "A variant needs a Task, but str was given"),
        (lambda: FamilySpecification(num_variants=0).family(), ValueError, "num_variants must be an integer >= 1"),
        (
            lambda: FamilySpecification.from_dict({"widths": [3, 4]}),
            ValueError,
            "Unknown entry of a family specification 'widths'. Did you mean 'width'",
        ),
        (lambda: gym.make("LearningRate-v0", task={"dataset": ["digits"]}), ValueError, "Did you mean 'data_sets'"),
        (lambda: draw_of(data_sets=["wine"], architectures=["cnn"]), ValueError, "Drawing variant 0 .* 'wine' holds no images"),
        (lambda: draw_of(batch_size=[2000, 3000]), ValueError, "batch_size starts at 2000, but .* has 1259 training examples"),
        (lambda: draw_of(architectures=["cnn"], convolutions=[4, 4]), ValueError, "4 convolutions halve the 8×8 images of data set 'digits' away"),
        (lambda: gym.make("LearningRate-v0", task={"optimizers": ["adan"]}), ValueError, "Unknown optimizer 'adan'"),
        (lambda: TaskFamily("odd", lambda _: 1 / 0, num_variants=2).variants, ValueError, "Drawing variant 0 .* failed: ZeroDivisionError: division"),
        (lambda: Variant(tiny_task(), data_fraction=0.0), ValueError, "data_fraction must be in \\(0, 1\\], but 0.0"),
        (lambda: Variant(tiny_task(), data_fraction=0.1), ValueError, "leaves 10 of the 102 training examples .* fewer than its batch_size 16"),
        (lambda: Variant(quadratic(), data_fraction=0.5), ValueError, "draws fresh samples, so that data_fraction must be 1"),
        (lambda: TaskFamily("noisy", quadratic(), label_noise=(0, 1)), ValueError, "has label noise, but task .* draws fresh samples"),
        (lambda: TaskFamily("scaled", tiny_task(), initialisation_scale_decades=(1, 0)), ValueError, "initialisation_scale_decades must be"),
    ],
)
def test_bad_input(make_it: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_it()


def draw_of(**options: Any) -> tuple[Task, ...]:
    return FamilySpecification.from_dict(options).family().variants


def quadratic() -> Task:
    return NoisyQuadratic((1.0,), (1.0,), (1.0,), horizon=5).task()


def test_models_with_another_activation_have_the_same_initial_weights() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = mlp(4, (8,), 3)
        torch.manual_seed(0)
        second = mlp(4, (8,), 3, nn.Tanh)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert isinstance(first[1], nn.ReLU) and isinstance(second[1], nn.Tanh)


def test_a_family_s_initial_rates_take_the_place_of_the_process_s() -> None:
    specification = FamilySpecification(data_sets=["wine"], initial_rate_decades=2.0)
    assert FamilySpecification.from_dict(specification.to_dict()) == specification
    assert "initial_rate_decades" not in FamilySpecification().to_dict()
    options: dict[str, Any] = {"features": ["log_rate"], "initial_rate": 0.1}
    env = LearningRateVectorEnv(50, specification.family(), **options)
    expected = LearningRateVectorEnv(50, FamilySpecification(data_sets=["wine"]).family(), initial_rate_decades=2.0, **options)
    observations = [each.reset(seed=3)[0] for each in (env, expected)]
    np.testing.assert_array_equal(*observations)
    assert -3 <= observations[0].min() < -2 and 0 < observations[0].max() <= 1
