"""The online actor-critic against its algorithm written out; it repeats itself bit for bit, and no training depends on its neighbours."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from agents import ONLINE_ENVIRONMENT, ActorCriticConfig, OnlineActorCritic
from agents.actor_critic import OnlineLearner
from agents.schedules import constant
from benchmarks import online
from benchmarks.runner import Runner
from lr_env import MDP, make_task
from lr_env.mdp.actions import RateRange
from lr_env.seeding import Role, role_seeds

EAGER = ActorCriticConfig(actor_starts=0)
RATES = RateRange(1e-3, 10.0, 0.1)


def make_learner(config: ActorCriticConfig = EAGER, seed: int = 0, num_features: int = 1) -> OnlineLearner:
    learner = OnlineLearner(num_features, RATES, config, np.random.SeedSequence(seed))
    # The output's weights are 0 at first, so that the LSTM would get no gradient.
    torch.nn.init.uniform_(learner.actor.output.weight, -0.3, 0.3, generator=torch.Generator().manual_seed(seed))
    return learner


def state(*values: float) -> np.ndarray:
    return np.array(values)


def weights(learner: OnlineLearner) -> list[Tensor]:
    return [parameter.detach().clone() for network in (learner.actor, learner.critic) for parameter in network.parameters()]


def make_environment(num_envs: int, **arguments: Any) -> Any:
    return gym.make_vec("LearningRate-v0", num_envs=num_envs, **{"task": "digits-logreg", "horizon": 12, **ONLINE_ENVIRONMENT, **arguments})


# The algorithm, written out on plain tensors.


def lstm(theta: list[Tensor], inputs: Tensor, memory: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Output y and new memory of a two-layer LSTM with a linear output, by the textbook's formulas."""
    following, values = [], inputs
    for layer in range(2):
        input_weights, hidden_weights, input_bias, hidden_bias = theta[4 * layer : 4 * layer + 4]
        hidden, cell = memory[layer]
        into, forget, new, out = (input_weights @ values + input_bias + hidden_weights @ hidden + hidden_bias).chunk(4)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
        values = torch.sigmoid(out) * torch.tanh(cell)
        following.append((values, cell))
    return (theta[8] @ values + theta[9])[0], following


def quality(phi: list[Tensor], inputs: Tensor, action: Tensor) -> Tensor:
    """Q(s, a) with one hidden layer."""
    return (phi[2] @ torch.tanh(phi[0] @ torch.cat([inputs, action[None]]) + phi[1]) + phi[3])[0]


class WrittenOutAdam:
    """Adam with its published defaults, after clipping the norm to 1."""

    def __init__(self, parameters: list[Tensor], rate: float) -> None:
        self.parameters, self.rate, self.count = parameters, rate, 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def descend(self, gradients: tuple[Tensor, ...]) -> None:
        self.count += 1
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        for i, gradient in enumerate(gradients):
            clipped = gradient * min(1.0, 1.0 / (norm + 1e-6))
            self.first[i] = 0.9 * self.first[i] + 0.1 * clipped
            self.second[i] = 0.999 * self.second[i] + 0.001 * clipped**2
            step = self.first[i] / (1 - 0.9**self.count) / ((self.second[i] / (1 - 0.999**self.count)).sqrt() + 1e-8)
            self.parameters[i].data -= self.rate * step


@pytest.mark.parametrize("output", ["absolute", "log"])
@pytest.mark.parametrize("actor_example", ["next", "same"])
def test_updates_equal_the_algorithm_written_out(output: Any, actor_example: Any) -> None:
    config = replace(EAGER, output=output, actor_example=actor_example, exploration="none", critic_learning_rate=3e-3, discount=0.8)
    learner = make_learner(config)
    theta = [p.detach().clone().requires_grad_() for p in learner.actor.parameters()]
    phi = [p.detach().clone().requires_grad_() for p in learner.critic.parameters()]
    actor_adam, critic_adam = WrittenOutAdam(theta, 1e-3), WrittenOutAdam(phi, 3e-3)
    memory = [(torch.zeros(20, dtype=torch.float64), torch.zeros(20, dtype=torch.float64))] * 2
    squash: Callable[[Tensor], Tensor] = torch.abs if output == "absolute" else lambda y: y
    generator = np.random.default_rng(1)
    for _ in range(6):
        s, s_same, s_other, reward = (torch.tensor([value], dtype=torch.float64) for value in generator.uniform(0.5, 2.5, 4))
        y, memory = lstm(theta, s, memory)
        memory = [(hidden.detach(), cell.detach()) for hidden, cell in memory]
        action = squash(y).detach()
        rate = float(action) if output == "absolute" else 10.0 ** float(action)
        assert learner.act(s.numpy()) == pytest.approx(rate, rel=1e-12)
        delta = reward[0] + 0.8 * quality(phi, s_same, squash(lstm(theta, s_same, memory)[0])) - quality(phi, s, action)
        gradients = torch.autograd.grad(quality(phi, s, action), phi)
        critic_adam.descend(tuple(-delta.detach() * gradient for gradient in gradients))
        s_actor = s_other if actor_example == "next" else s_same
        # ∇_θ π(s_j') ∇_a Q(s_j', a), the product of two derivatives
        policy = squash(lstm(theta, s_actor, memory)[0])
        chosen = policy.detach().requires_grad_()
        (slope,) = torch.autograd.grad(quality(phi, s_actor, chosen), chosen)
        actor_adam.descend(tuple(-slope * gradient for gradient in torch.autograd.grad(policy, theta)))
        learner.learn(float(reward), s_same.numpy(), s_other.numpy())
        for expected, parameter in zip([*theta, *phi], [*learner.actor.parameters(), *learner.critic.parameters()], strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-7, atol=1e-9, check_stride=False)


def test_gradients_equal_finite_differences() -> None:
    learner = make_learner(replace(EAGER, gradient_clip=None))
    learner.act(state(1.5))
    learner.learn(0.3, state(1.2), state(1.4))
    before = weights(learner)
    learner.act(state(1.4))
    action, critic_before, memory = learner._action.clone(), [p.detach().clone() for p in learner.critic.parameters()], learner._memory
    learner.learn(0.2, state(1.1), state(1.3))

    def value_of_policy() -> float:
        with torch.no_grad():
            y = learner.actor(torch.tensor([[1.3]], dtype=torch.float64), memory)[0].abs()
            return float(learner.critic(torch.cat([torch.tensor([[1.3]], dtype=torch.float64), y], dim=1)))

    gradients = [p.grad.clone() for p in learner.actor.parameters() if p.grad is not None]
    for parameter, old in zip(learner.actor.parameters(), before, strict=False):
        parameter.data.copy_(old)  # the critic is the updated one, as when the gradient was taken
    for parameter, gradient in zip(learner.actor.parameters(), gradients, strict=True):
        flat = parameter.data.view(-1)
        for index in range(0, len(flat), 37):
            centre = float(flat[index])
            values = []
            for shift in (1e-5, -1e-5):
                flat[index] = centre + shift
                values.append(value_of_policy())
            flat[index] = centre
            # Adam descends, so that the gradient is that of −Q.
            assert -float(gradient.view(-1)[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-9)

    def half_squared_error(bias: float) -> float:
        w1, b1, w2, _ = critic_before
        with torch.no_grad():
            same_action = learner.actor(torch.tensor([[1.1]], dtype=torch.float64), memory)[0].abs()

            def q(s: float, a: Tensor, last: float) -> float:
                return float(torch.tanh(torch.cat([torch.tensor([[s]], dtype=torch.float64), a], 1) @ w1.T + b1) @ w2.T) + last

            target = 0.2 + 0.9 * q(1.1, same_action, float(critic_before[3]))  # a constant: the semi-gradient of TD
            return (target - q(1.4, action, bias)) ** 2 / 2

    bias = float(critic_before[3])
    last = list(learner.critic.parameters())[3]
    assert last.grad is not None
    assert float(last.grad) == pytest.approx((half_squared_error(bias + 1e-5) - half_squared_error(bias - 1e-5)) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("output", ["absolute", "log"])
def test_updates_go_the_right_way(output: Any) -> None:
    learner = make_learner(replace(EAGER, output=output, exploration="none", discount=0.0))
    learner.act(state(1.0))

    def value() -> float:
        return learner._value(learner._state, learner._action).item()

    before = value()
    learner.learn(before + 1.0, state(0.9), state(0.9))  # better than expected
    assert value() > before
    before = value()
    learner.learn(before - 1.0, state(0.9), state(0.9))  # worse
    learner.learn(before - 1.0, state(0.9), state(0.9))
    assert value() < before
    with torch.no_grad():
        # Q = a: the actor must raise the rate.
        for parameter, values in zip(learner.critic.parameters(), ([[0.0, 0.01]] * 10, [0.0] * 10, [[10.0] * 10], [0.0]), strict=True):
            parameter.copy_(torch.tensor(values))
    rate = learner._action_of(learner.actor(learner._state, learner._memory)[0]).item()
    for _ in range(3):
        learner.learn(value(), state(1.0), state(1.0))
    assert learner._action_of(learner.actor(learner._state, learner._memory)[0]).item() > rate


def test_first_rate_is_the_initial_one_and_exploration_is_log_normal() -> None:
    for output in ("absolute", "log"):
        config = replace(EAGER, output=output, actor_starts=10_000)
        learner = OnlineLearner(1, RATES, config, np.random.SeedSequence(0))
        assert learner.act(state(2.0), deterministic=True) == pytest.approx(0.1, rel=1e-12)
        noise = np.log10([learner.act(state(2.0)) for _ in range(2_000)]) + 1
        assert abs(noise.mean()) < 0.01
        assert abs(noise.std() - 0.1) < 0.01
        quiet = OnlineLearner(1, RATES, replace(config, exploration="none"), np.random.SeedSequence(0))
        assert quiet.act(state(1.0)) == pytest.approx(0.1, rel=1e-12)


def test_rates_are_clipped_to_the_range() -> None:
    learner = make_learner(replace(EAGER, output="log", exploration="none"))
    for bias, expected in ((-1e6, RATES.lowest), (1e6, RATES.highest)):
        torch.nn.init.constant_(learner.actor.output.bias, bias)
        assert learner.act(state(1.0)) == expected


def test_the_actor_starts_late_and_the_example_matters() -> None:
    learner = make_learner(replace(EAGER, actor_starts=2))
    frozen = [p.detach().clone() for p in learner.actor.parameters()]
    for _ in range(2):
        learner.act(state(1.0))
        learner.learn(0.1, state(0.9), state(1.1))
        assert all(torch.equal(a, b) for a, b in zip(frozen, learner.actor.parameters(), strict=True))
    learner.act(state(1.0))
    learner.learn(0.1, state(0.9), state(1.1))
    assert not torch.equal(frozen[0], next(learner.actor.parameters()))

    def after(actor_example: Any, other: float) -> list[Tensor]:
        learner = make_learner(replace(EAGER, actor_example=actor_example))
        learner.act(state(1.0))
        learner.learn(0.1, state(0.9), state(other))
        return weights(learner)

    same, same_again, other, other_again = after("same", 1.1), after("same", 5.0), after("next", 1.1), after("next", 5.0)
    assert all(torch.equal(a, b) for a, b in zip(same, same_again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(other, other_again, strict=True))


def test_truncation_reaches_further_back() -> None:
    def gradient(truncation: int) -> Tensor:
        learner = make_learner(replace(EAGER, truncation=truncation, exploration="none", gradient_clip=None))
        for value in (2.0, 1.0, 1.5):
            learner.act(state(value))
        learner.learn(0.1, state(0.9), state(1.1))
        found = next(learner.actor.parameters()).grad
        assert found is not None
        return found

    assert not torch.allclose(gradient(1), gradient(2), rtol=1e-3)
    assert torch.equal(gradient(4), gradient(9))  # the whole past


def test_what_is_not_finite_teaches_nothing() -> None:
    learner = make_learner()
    learner.act(state(1.0))
    before = weights(learner)
    for reward, same, other in ((math.nan, 1.0, 1.0), (math.inf, 1.0, 1.0), (0.1, math.nan, 1.0), (0.1, 1.0, math.inf)):
        learner.learn(reward, state(same), state(other))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner), strict=True))


@pytest.mark.parametrize("output", ["absolute", "log"])
@pytest.mark.parametrize("best", [0.5, 2.0])
def test_rate_moves_to_larger_reward(output: Any, best: float) -> None:
    config = ActorCriticConfig(output=output, discount=0.0, critic_learning_rate=1e-2)
    agent = OnlineActorCritic(config, seed=2)
    agent.begin([0], MDP(**ONLINE_ENVIRONMENT, initial_rate=1.0))
    observation, memory = np.ones((1, 1)), None
    distances = []
    for _ in range(160):
        actions, memory = agent.predict(observation, memory)
        agent.observe(-4 * np.log10(actions[:, 0] / best) ** 2, observation)
        chosen = agent.learners[0]
        y = chosen._action_of(chosen.actor(chosen._state, chosen._memory)[0]).item()
        distances.append(abs((math.log10(y) if output == "absolute" else y) - math.log10(best)))
    assert distances[0] == distances[99] == pytest.approx(math.log10(2))
    assert min(distances[100:]) < 0.1 * distances[0]


def test_repeats_itself_bit_for_bit_and_leaves_global_generators_alone() -> None:
    environments = [make_environment(2) for _ in range(3)]
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first, second, other = (
        OnlineActorCritic(EAGER, seed).run(environment, [3, 8]) for environment, seed in zip(environments, (0, 0, 1), strict=True)
    )
    for name in ("losses", "rates", "rewards", "diverged"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.rates, other.rates)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_members_equal_single_trainings() -> None:
    seeds = [5, 2, 9]
    environment = make_environment(3)
    together = OnlineActorCritic(EAGER).run(environment, seeds)
    assert together.rates.shape == (12, 3)
    assert together.losses.shape == (13, 3)
    for i, seed in enumerate(seeds):
        alone = make_environment(1)
        single = gym.make("LearningRate-v0", task="digits-logreg", horizon=12, **ONLINE_ENVIRONMENT)
        for record, final in (
            (OnlineActorCritic(EAGER).run(alone, [seed]), alone.unwrapped.evaluate("train")),
            (OnlineActorCritic(EAGER).run(single, [seed]), single.unwrapped.evaluate("train")),  # type: ignore[attr-defined]
        ):
            # The engines of one and of several members round differently.
            np.testing.assert_allclose(record.rates[:, 0], together.rates[:, i], rtol=1e-5)
            np.testing.assert_allclose(record.losses[:, 0], together.losses[:, i], rtol=1e-5)
            np.testing.assert_allclose(final.losses[0], environment.unwrapped.evaluate("train").losses[i], rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"features": "scale_free"}], ids=["same state known", "not known"])
def test_the_benchmarks_runner_lets_it_learn_as_its_own_run_does(options: dict[str, Any]) -> None:
    seeds, agent = [5, 2, 9], OnlineActorCritic(EAGER, seed=1)
    expected = agent.run(make_environment(3, **options), seeds)
    bound = OnlineActorCritic(EAGER, seed=1).bind()
    for _ in range(2):  # nothing is left of the first run
        found = Runner("digits-logreg", replace(bound.mdp, **options), seeds, 12).run(bound.controller)
        np.testing.assert_array_equal(found.losses, expected.losses)
        np.testing.assert_array_equal(found.rates, expected.rates)
    assert len(np.unique(found.rates)) == found.rates.size


def test_neighbours_do_not_matter() -> None:
    generator = np.random.default_rng(0)
    inputs = generator.uniform(0, 2, (10, 2, 1))

    def rates_of_first(neighbour: float) -> list[float]:
        agent, memory, found = OnlineActorCritic(EAGER), None, []
        for t in range(9):
            observation = inputs[t] * [[1.0], [neighbour]]
            actions, memory = agent.predict(observation, memory)
            found.append(float(actions[0, 0]))
            agent.observe(np.array([0.1 * t, neighbour]), inputs[t + 1] * [[1.0], [neighbour]], ended=np.array([False, t > 5]))
        return found

    expected = rates_of_first(1.0)
    assert rates_of_first(3.0) == expected
    with np.errstate(invalid="ignore"):
        assert rates_of_first(math.nan) == expected


def test_run_sees_the_paper_s_quantities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards and states against a training written out."""
    seen: list[tuple[float, float, float]] = []
    learn = OnlineLearner.learn

    def record(self: OnlineLearner, reward: float, same_state: np.ndarray, next_state: np.ndarray) -> None:
        seen.append((reward, float(same_state[0]), float(next_state[0])))
        learn(self, reward, same_state, next_state)

    monkeypatch.setattr(OnlineLearner, "learn", record)
    rates = OnlineActorCritic(EAGER).run(make_environment(1), [4]).rates[:, 0]
    task = make_task("digits-logreg")
    model, batches = task.initial_model(4), task.batches(4)
    batch = next(batches)
    assert len(seen) == len(rates) - 1  # nothing is left to be learned for after the last step
    for rate, (reward, same_state, next_state) in zip(rates, seen, strict=False):
        loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rate * gradient
            after = float(torch.nn.functional.cross_entropy(model(batch[0]), batch[1]))
            batch = next(batches)
            following = float(torch.nn.functional.cross_entropy(model(batch[0]), batch[1]))
        np.testing.assert_allclose([reward, same_state, next_state], [loss.item() - after, after, following], rtol=1e-4, atol=1e-5)


def test_diverged_trainings_end_and_the_others_go_on() -> None:
    environment = make_environment(2, horizon=30, initial_rate=50.0, reward={"kind": "loss", "divergence": 1.5}, task="digits-mlp")
    record = OnlineActorCritic(EAGER).run(environment, [0, 1])
    assert record.diverged.any()
    ended = np.isnan(record.rates)
    assert (np.diff(ended.astype(int), axis=0) >= 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "sigmoid"}, "absolute"),
        ({"exploration": "white"}, "log_normal"),
        ({"discount": 1.1}, "discount"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"truncation": 0}, "truncation"),
    ],
)
def test_refuses_impossible_choices(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActorCriticConfig(**changes)


def test_refuses_what_it_cannot_control() -> None:
    agent = OnlineActorCritic()
    with pytest.raises(ValueError, match="seed"):
        OnlineActorCritic(seed=-1)
    with pytest.raises(ValueError, match='action="rate"'):
        agent.run(make_environment(1, action="relative"), [0])
    with pytest.raises(ValueError, match="NextStep"):
        agent.run(make_environment(1, autoreset_mode="SameStep"), [0])
    with pytest.raises(ValueError, match="One seed per training"):
        agent.run(make_environment(2), [0])
    with pytest.raises(TypeError, match="LearningRate-v0"):
        agent.run(gym.make("CartPole-v1"), [0])


def test_other_features_run_too() -> None:
    record = OnlineActorCritic(EAGER).run(make_environment(2, features="scale_free", reward="log_loss", reward_on="next_batch"), [0, 1])
    assert np.isfinite(record.rates).all()


def fewer_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.baselines.GRID_POINTS", 3)
    monkeypatch.setattr(online, "GRID_STARTS", {"sgd": 0.5, "adam": -2.0, "sps": -1.0})


def test_benchmark_writes_table_verdicts_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fewer_cells(monkeypatch)
    monkeypatch.setattr(online, "ProcessPoolExecutor", lambda *arguments: ThreadPoolExecutor(1))  # other processes would not see these changes
    options = online.Options("digits-logreg", horizon=6, trainings=2, tuning_trainings=2, num_examples=128, output=tmp_path)
    online.main(options)
    results = json.loads((tmp_path / "results.json").read_text())
    rows, table = results["rows"], {row["name"]: row for row in results["table"]}
    assert set(rows) > {*online.VARIANTS, *online.BASELINES}
    best = rows[online.BEST_CONSTANT]["best"]
    report = Runner("digits-logreg", MDP(action="rate"), role_seeds(0, Role.REPORT, 2), 6, 128)
    expected = report.run(constant(best).bind("sgd").controller).scores
    assert rows[online.BEST_CONSTANT]["scores"] == pytest.approx(expected.tolist(), rel=1e-5)
    found = table[f"{online.BEST_CONSTANT} {best:.3g}"]["difference"]["mean"]
    assert found == pytest.approx(np.mean(rows[online.ONLINE]["scores"]) - expected.mean(), abs=1e-5)
    assert rows[online.BEST_CONSTANT]["scores"] == rows[f"SGD, constant {best:.3g}"]["scores"]
    assert len(results["verdicts"]) == 4
    assert (tmp_path / "online.png").stat().st_size > 10_000
    assert online.ONLINE in capsys.readouterr().out
    monkeypatch.setattr(online, "run_cell", lambda cell, options: pytest.fail("finished cells are not computed again"))
    online.main(options)
    with pytest.raises(SystemExit, match="is from a run with"):
        online.main(dataclasses.replace(options, horizon=7))


def test_benchmark_extends_the_grid_and_leaves_cells_of_other_processes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer_cells(monkeypatch)
    done: dict[online.Cell, dict[str, Any]] = {}
    while cells := [cell for cell in online.wanted_cells(done) if cell not in done]:
        done |= {cell: {"scores": [-math.log10(cell.point)] if cell.point else [0.0]} for cell in cells}  # the highest rate is the best
    highest = {name: max(cell.point for cell in done if cell.name == name and cell.point) for name in online.BASELINES}
    assert highest[online.POLYAK] == pytest.approx(1e3, rel=0.5)
    assert highest[online.BEST_CONSTANT] == pytest.approx(100, rel=0.5)
    assert {cell.point for cell in done if cell.name == online.ADAM and not cell.tunes} == {highest[online.ADAM]}
    options, cell = online.Options(output=tmp_path), online.Cell(online.ONLINE)
    monkeypatch.setattr(online, "run_cell", lambda cell, options: {"scores": [1.0]})
    (tmp_path / cell.path).parent.mkdir()
    with FileLock(tmp_path / f"{cell.path}.lock"), ThreadPoolExecutor(1) as other:
        assert other.submit(online.find_cell, cell, options).result() is None
    assert online.find_cell(cell, options) == {"scores": [1.0]}


def test_verdicts_follow_the_intervals() -> None:
    def row(name: str, low: float, high: float) -> dict[str, Any]:
        return {"name": name, "difference": {"mean": (low + high) / 2, "low": low, "high": high}}

    names = (f"{online.BEST_CONSTANT} 0.2", f"{online.POLYAK} 1", f"{online.ADAM} 0.001", "… actor on the same minibatch")
    found = online.verdicts([row(name, low, low + 0.2) for name, low in zip(names, (-0.3, 0.1, -0.1, -0.4), strict=True)])
    for sentence, expected in zip(found, ("held", "did not hold, the reverse did", "undecided", "held"), strict=True):
        assert f": {expected} (" in sentence
