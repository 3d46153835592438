"""The single environment, and the specification of ``LearningRate-v0``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from lr_env.episodes import Episodes, Execution, Outcome, find_family
from lr_env.mdp import MDP
from lr_env.rendering import render_training
from lr_env.seeding import check_seed
from lr_env.tasks import Task, TaskFamily
from lr_env.tasks.task import SplitName
from lr_env.training import Evaluation, OptimizerSpecification
from lr_env.training.gradients import Engine


class LearningRateEnv(gym.Env[np.ndarray, Any]):
    """The SGD training of a model as a Markov decision process (Xu et al. 2017, arXiv 1705.11159).

    ## Description

    An episode is one training of ``horizon`` SGD steps. At each step the minibatch loss and gradient at the weights ``w_t`` are
    computed, the agent observes them, and the rate that it chooses is applied to that very gradient:
    ``w_{t+1} = w_t − η_t · u_t``, with the optimizer's direction ``u_t`` at unit rate. One forward and one backward pass a step.

    ```python
    import gymnasium as gym
    import lr_env  # registers the environment

    env = gym.make("LearningRate-v0", task="digits-mlp")
    ```

    ## Observation space

    ``Box(-10, 10, (G · F,), float32)``: the F features in the order given, of the first parameter group, then of the second, and so on; G is
    1 unless ``lr_groups`` says otherwise. All logarithms are base 10, all features are clipped to
    ±10 and need no further normalisation. ℓ: minibatch loss; b: its lower bound (0 for classification); g: gradient; u: direction; w:
    weights; η: rate in force (the last one applied; before the first decision the initial one, or that of what a residual action
    corrects); T: horizon; EMA₅: exponential moving average over 5 SGD steps. With several groups g, u, w, η, μ and a are the group's own, and
    all else is the training's.

    | Feature | Formula | Typical range | Unit |
    |---|---|---|---|
    | ``log_loss`` | log(ℓ − b) | −4 to 1 | decades |
    | ``loss_ratio`` | EMA₅(log(ℓ − b)) − log(ℓ₀ − b) | −4 to 1 | decades |
    | ``loss_trend`` | 10·(EMA₅ − EMA₂₀)(log(ℓ − b)) | −5 to 5 | decades / 10 |
    | ``loss_trend_of_horizon`` | 10·(EMA₀.₀₁T − EMA₀.₀₅T)(log(ℓ − b)) | −5 to 5 | decades / 10 |
    | ``log_gradient_norm`` | log ‖g‖ | −4 to 2 | decades |
    | ``gradient_norm_ratio`` | log ‖g‖ − log ‖g₀‖ | −4 to 2 | decades |
    | ``gradient_cosine`` | ⟨g, g₋₁⟩ / (‖g‖ ‖g₋₁‖); 0 at the first step | −1 to 1 | 1 |
    | ``gradient_cosine_average`` | EMA₅ of ``gradient_cosine`` | −1 to 1 | 1 |
    | ``log_rate`` | log η | −6 to 2 | decades |
    | ``predicted_decrease`` | log(η ⟨g, u⟩⁺ / (ℓ − b)) | −4 to 1 | decades |
    | ``relative_update`` | log(η ‖u‖ / ‖w‖) | −5 to 1 | decades |
    | ``progress`` | t / T | 0 to 1 | 1 |
    | ``log_horizon`` | log(T) / 4 | 0 to 1 | 4 decades |
    | ``momentum`` | −log(1 − μ), μ: momentum or β₁ in force | 0 to 2 | decades |
    | ``minibatch_loss`` | ℓ | 0 to 10 | the loss's |
    | ``predictive_change`` | log Var_i(η ⟨g_i, u⟩), i: examples of the minibatch | −8 to 2 | decades |
    | ``predictive_change_mean`` | m ← 0.9 m + 0.1 x, x = predictive_change | −8 to 2 | decades |
    | ``predictive_change_uncertainty`` | v ← 0.9 v + 0.1 (x − m)², 0 at first | 0 to 2 | decades² |
    | ``disagreement`` | log Var_i(ℓ_i) | −6 to 2 | decades |
    | ``disagreement_mean`` | m ← 0.9 m + 0.1 x, x = disagreement | −6 to 2 | decades |
    | ``disagreement_uncertainty`` | v ← 0.9 v + 0.1 (x − m)², 0 at first | 0 to 2 | decades² |
    | ``alignment`` | mean_j sign(u_j · u₋₁_j), j: weights; 0 at first | −1 to 1 | 1 |
    | ``log_validation_loss`` | log(ℓ_V − b), V: four minibatches' worth of the validation split, fixed | −4 to 1 | decades |
    | ``log_prediction_variance`` | log Var(f(V; w)), f: outputs in evaluation mode | −4 to 2 | decades |
    | ``log_prediction_change_variance`` | log Var(f(V; w) − f(V; w₋₁)), −10 at first | −8 to 1 | decades |
    | ``output_weight_mean`` | mean_j W_j, W: weights of the output layer | −1 to 1 | 1 |
    | ``log_output_weight_variance`` | log Var_j(W_j) | −4 to 0 | decades |
    | ``relative_loss_deviation`` | std(ℓ) / mean(ℓ) over 20 steps | 0 to 1 | 1 |
    | ``loss_average_gap`` | (s − l) / l, s ← 0.9 s + 0.1 ℓ, l ← 0.99 l + 0.01 ℓ | −1 to 1 | 1 |
    | ``log_base_rate`` | log of the action's base rate; of η without one | −6 to 2 | decades |
    | ``previous_action`` | a₋₁, 0 at first | −1 to 1 | 1 |
    | ``depth`` | group / (G − 1), 0 for G = 1 | 0 to 1 | 1 |
    | ``log_weight_norm`` | log ‖w‖ | −2 to 3 | decades |
    | ``gradient_norm_change`` | log ‖g‖ − log ‖g₋₁‖, 0 at first | −1 to 1 | decades |

    ``features="scale_free"`` (default): ``predicted_decrease``, ``relative_update``, ``loss_ratio``, ``loss_trend``,
    ``loss_trend_of_horizon``, ``gradient_cosine``, ``gradient_cosine_average``, ``gradient_norm_ratio``, ``progress``,
    ``log_horizon``; a loss multiplied by a constant gives the same observations wherever the rates compensate for it.
    ``features="absolute"``: ``log_loss``, ``loss_trend``, ``loss_ratio``, ``log_gradient_norm``, ``gradient_cosine``, ``log_rate``,
    ``progress``. A list of feature and set names is accepted too. Published state vectors, as far as they are known, with positive
    quantities as logarithms: ``"xu2017"`` (Xu et al. 2017, arXiv 1705.11159): ``minibatch_loss``. ``"daniel2016"`` (Daniel et al. 2016):
    ``predictive_change``, ``disagreement``, the mean and uncertainty of each, ``alignment``; it takes the gradients of single examples,
    and so refuses models with batch normalisation or dropout. ``"xu2019"`` (Xu et al. 2019, arXiv 1909.09712): ``log_loss``, ``log_validation_loss``,
    ``log_prediction_variance``, ``log_prediction_change_variance``, ``output_weight_mean``, ``log_output_weight_variance``, ``log_rate``; it
    takes a forward pass on validation examples at each step. ``"solar2026"`` (SOLAR 2026): ``progress``, ``log_loss``, ``relative_loss_deviation``,
    ``loss_average_gap``, ``log_base_rate``, ``log_gradient_norm``, ``previous_action``, ``depth``, ``log_weight_norm``, ``gradient_norm_change``.
    What no feature asks for is not computed.

    ## Action space

    | ``action`` | Space | Rate |
    |---|---|---|
    | ``"relative"`` (default) | ``Box(-1, 1, (1,))`` | log η ← log η + ``max_change`` · a; ``max_change`` = 0.5 decades |
    | ``"absolute"`` | ``Box(-1, 1, (1,))`` | log-uniform over [``lr_min``, ``lr_max``] |
    | ``"residual"`` | ``Box(-1, 1, (1,))`` | base · 10^(``decades`` · a); ``decades`` = 1.5; ``base`` is ``"sps"`` (``constant`` · (ℓ − b) / max(⟨g, u⟩, 0.1 ‖g‖ ‖u‖), ``constant`` = 0.2), or ``"constant"``, ``"linear"``, ``"cosine"``, ``"step"``, ``"warmup_stable_decay"`` times ``rate``, which is ``initial_rate`` by default |
    | ``"discrete"`` | ``Discrete(2k + 1)`` | choice j: log η ← log η + ``max_change`` · (j − k) / k; ``steps`` k = 2 |
    | ``"rate"`` | ``Box(0, inf, (1,), float64)`` | the action itself; for schedules |

    Options go into a mapping: ``action={"kind": "residual", "base": "cosine"}``. All but ``"rate"`` are clipped to the rate range.

    With G parameter groups (``lr_groups``) the action has one entry for each, in the groups' order: ``Box(-1, 1, (G,))``; ``"discrete"`` needs
    G = 1. ``env.unwrapped.parameter_groups`` names the parameters of each group. With ``control_momentum=True`` G more entries follow, the
    momentum (or β₁) of each group: entry a is μ = 1 − 10^(−1 − a), from 0 through 0.9 to 0.99; with ``"rate"`` it is μ itself.

    ## Rewards

    The reduction of a potential, ``Φ(w_t) − Φ(w_{t+1})``: ``reward="log_loss"`` (default): Φ = log10(ℓ − b + ``loss_floor`` · ℓ₀), in
    decades, ``loss_floor`` = 0; ``reward="loss"``: Φ = ℓ − b. Φ is bounded by 1e-6 · ℓ₀ below and ``divergence`` · ℓ₀ above; rewards
    are not clipped. Where ℓ comes from:

    | ``reward_on`` | ℓ | Cost |
    |---|---|---|
    | ``"next_batch"`` (default) | the minibatch losses that are observed anyway; the first and the last Φ on the reference subset, so that the undiscounted return is exactly Φ(w_0) − Φ(w_T) on it | none |
    | ``"same_batch"`` | ℓ(B_t; w_t) − ℓ(B_t; w_{t+1}), the paper's as recalled; **does not telescope**: fitting each minibatch in turn pays for ever without progress | one forward pass a step |
    | ``"reference"`` | ``subset_size`` fixed examples of the training split (four minibatches by default), every ``interval`` = 1 steps | one forward pass on them |
    | ``"validation"`` | the same of the validation split | one forward pass on them |
    | ``"final"`` | the reference subset, paid once at the end | none |

    Options go into a mapping: ``reward={"kind": "log_loss", "loss_floor": 0.01}``. Use a discount near 1, such as
    1 − 1 / (10 · decisions): a smaller one prefers rates that are far too small (Wu et al. 2018).

    ## Starting state

    ``reset(seed=s)`` seeds separate streams for the weights, the data order, the family's draws and the initial rate.
    ``reset()`` without a seed continues with the next training of the same seed. The starting rate, and with it the
    schedule that a residual action corrects, is off by ``10**u``, u uniform in ± ``initial_rate_decades`` (0 by default).

    ## Episode end

    - Divergence: the loss is not finite, or ℓ − b > ``divergence`` = 20 times its first value: ``terminated``; Φ goes to its upper
      bound, so that a diverged return is the worst there is; ``info["diverged"]`` is True.
      With ``circuit_breaker`` no training diverges: where ℓ − b > ``threshold`` = 1.5 times its average E over ``time_constant`` = 10 SGD steps
      (SOLAR 2026), and above E by more than ``deviations`` = 5 mean absolute deviations (ours; else the noise of small minibatches counts), the
      training goes back to its last safe state (ℓ − b ≤ E), and the reward is the change of Φ less ``penalty`` = 1; ``info["rolled_back"]`` is
      True. The data go on and the step counts.
    - After ``horizon`` SGD steps: ``terminated`` where ``progress`` is observed (the end is part of the state), else ``truncated``.

    ## Arguments

    | Argument | Default | Meaning |
    |---|---|---|
    | ``task`` | ``"digits-mlp"`` | a registered name (``python -m lr_env.tasks`` lists them), a ``Task``, a ``TaskFamily``, or a family as a mapping: see ``FamilySpecification`` |
    | ``horizon`` | the task's | SGD steps of an episode |
    | ``optimizer`` | ``"sgd"`` | ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adagrad"``, ``"rmsprop"``, ``"adam"``, ``"adamw"``, ``"nadamw"``, ``"lion"``; or with hyperparameters, ``{"name": "adam", "beta1": 0.95}``: ``weight_decay`` (0; AdamW, NAdamW 0.01) and ``clip_norm`` (None) for all; ``momentum`` (0.9; RMSprop None); ``epsilon`` (1e-8; AdaGrad 1e-10); Adam, AdamW, NAdamW ``beta1``, ``beta2`` (0.9, 0.999); Lion ``beta1``, ``beta2`` (0.9, 0.99); RMSprop ``smoothing`` (0.99), ``centered`` (False); AdaGrad ``initial_accumulator`` (0); NAdamW ``momentum_decay`` (0.004); or a function that makes any other optimizer of ``torch.optim``'s kind, ``lambda parameters: torch.optim.RAdam(parameters)``, which runs in a loop |
    | ``features``, ``action``, ``reward``, ``reward_on`` | see above | |
    | ``steps_per_action`` | 1 | SGD steps that share one decision |
    | ``lr_min``, ``lr_max``, ``initial_rate`` | by optimizer: SGD 1e-4, 1e2, 0.1; momentum, Nesterov, AdaGrad 1e-5, 10, 0.01; RMSprop, Adam, AdamW, NAdamW 1e-6, 1, 1e-3; Lion 1e-7, 0.1, 1e-4 | rate range and start |
    | ``initial_rate_decades`` | 0 | random offset of the start, decades |
    | ``lr_groups`` | ``"global"`` | parameter groups with rates of their own: ``"layer"`` (one for each module with parameters), ``"tensor"`` (one for each parameter), or lists of parameter names |
    | ``control_momentum`` | False | the action chooses the momentum or β₁ too |
    | ``circuit_breaker`` | False | True, or a mapping with ``threshold``, ``penalty``, ``time_constant``, ``deviations``: undoes steps that make the loss jump, see above |
    | ``gradients`` | ``"auto"`` | ``"batched"``, ``"looped"``: how a population's gradients are computed, all at once or one member after another; what is faster for the model, where it is not given |
    | ``variant`` | 0 | which variant of a family is trained |
    | ``dtype`` | ``"float32"`` | ``"float64"`` for exactness |
    | ``compile`` | False | ``True`` lets ``torch.compile``'s backend make kernels of the whole step; takes seconds at the first reset, needs a C++ compiler, and pays for long runs of many trainings |
    | ``device`` | ``"cpu"`` | ``"cuda"``, where a whole decision is one CUDA graph, which pays for hundreds of trainings and more; ``"auto"`` for a GPU where there is one |
    | ``num_threads`` | 1 | PyTorch's threads during a step, whatever the process uses otherwise; more help large populations on idle cores, and are many times slower on busy ones |
    | ``render_mode`` | None | ``"rgb_array"``: the loss and the rate so far |

    All arguments but Python objects given as ``task`` or ``optimizer`` are JSON scalars, lists and mappings, so that ``env.spec`` round-trips; with such
    an object ``env.spec.to_json()`` raises. ``horizon`` is the length of an episode: ``gym.make_vec`` refuses ``max_episode_steps``, and with
    it ``gym.make`` cuts the episode from outside, unseen by features and reward.

    ## Information

    Both ``reset`` and ``step`` return ``loss`` (ℓ at the observation), ``learning_rate`` (the last one applied; an array ``(G,)`` where G > 1), ``step``
    (SGD steps so far) and ``diverged``; with a circuit breaker ``rolled_back`` too. ``reset`` takes no ``options``.

    ## Beyond Gymnasium

    ``env.unwrapped.get_state()`` and ``set_state(state)`` branch a training; ``env.unwrapped.evaluate(split)`` gives loss and metric
    of the present weights over a whole split. The global generators of ``random``, NumPy and PyTorch are left as they were found.

    ## Version history

    - v0: initial version. A change of the default features, action, reward, of a feature's formula or of the random streams makes v1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (as Gymnasium has it)

    def __init__(
        self,
        task: str | Mapping[str, Any] | Task | TaskFamily = "digits-mlp",
        horizon: int | None = None,
        optimizer: OptimizerSpecification = "sgd",
        features: str | Sequence[str] = "scale_free",
        action: str | Mapping[str, Any] = "relative",
        reward: str | Mapping[str, Any] = "log_loss",
        reward_on: str = "next_batch",
        steps_per_action: int = 1,
        lr_min: float | None = None,
        lr_max: float | None = None,
        initial_rate: float | None = None,
        initial_rate_decades: float = 0.0,
        lr_groups: str | Sequence[Sequence[str]] = "global",
        control_momentum: bool = False,
        circuit_breaker: bool | Mapping[str, Any] = False,
        variant: int = 0,
        gradients: Engine = "auto",
        dtype: str = "float32",
        compile: bool = False,  # noqa: A002  (torch's word)
        device: str = "cpu",
        num_threads: int = 1,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or 'rgb_array', but {render_mode!r} was given.")
        rates = lr_min, lr_max, initial_rate, initial_rate_decades, lr_groups, control_momentum, circuit_breaker
        mdp = MDP(optimizer, features, action, reward, reward_on, steps_per_action, *rates)
        self.render_mode = render_mode
        self.episodes = Episodes(find_family(task).variant(variant), 1, mdp, horizon, Execution(gradients, dtype, compile, device, num_threads))
        self.observation_space, self.action_space = self.episodes.observation_space, self.episodes.action_space
        self._members = np.arange(1)
        self._state = "new"  # then "running" or "ended"
        self._history: list[tuple[float, np.ndarray]] = []

    @property
    def mdp(self) -> MDP:
        """The decision process, as saved with a controller."""
        return self.episodes.mdp

    @property
    def parameter_groups(self) -> tuple[tuple[str, ...], ...]:
        """The names of the parameters of each group, ``(G,)``."""
        return self.episodes.parameter_groups

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a training: the first of ``seed``, or without a seed the next one.

        Raises:
            TypeError: If the seed is no integer.
            ValueError: If the seed is negative.
        """
        if seed is not None:
            seed = check_seed(seed)
        super().reset(seed=seed)
        if seed is None and self._state == "new":
            seed = int(self.np_random.integers(2**31))
        self.episodes.restart(self._members, [seed])
        outcome = self.episodes.begin(self._members)
        self._state = "running"
        self._history = []
        return outcome.observations[0], self._info(outcome)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Applies the chosen rate and takes the next gradient.

        Raises:
            ResetNeeded: Before the first reset and after the end of an episode.
            TypeError: If the action is no real number.
            ValueError: If the action's shape is wrong or it is not a number. The environment stays as it was.
        """
        if self._state != "running":
            raise ResetNeeded(f"The episode is {self._state}: call reset() before step().")
        given = np.asarray(action)
        if given.dtype.kind in "fiub" and given.shape != self.action_space.shape:
            raise ValueError(f"Actions of shape {self.action_space.shape} are expected, but {given.shape} was given: {action!r}.")
        actions = self.episodes.parse_actions(given[None])
        outcome = self.episodes.step(actions)
        terminated, truncated = bool(outcome.terminated[0]), bool(outcome.truncated[0])
        if terminated or truncated:
            self._state = "ended"
        return outcome.observations[0], float(outcome.rewards[0]), terminated, truncated, self._info(outcome)

    def render(self) -> np.ndarray | None:
        """The loss and the rates so far as an image ``(height, width, 3)``, uint8; None without a render mode.

        Raises:
            ResetNeeded: Before the first reset.
        """
        if self.render_mode is None:
            gym.logger.warn('render() was called without a render mode; pass render_mode="rgb_array" to gym.make.')
            return None
        if self._state == "new":
            raise ResetNeeded("Call reset() before render().")
        losses, rates = (np.array(values) for values in zip(*self._history, strict=True))
        return render_training(losses, rates, self.episodes.horizon, self.mdp.steps_per_action)

    def evaluate(self, split: SplitName) -> Evaluation:
        """Mean loss ``(1,)`` and metric ``(1,)`` of the present weights over a split: ``"train"``, ``"validation"`` or ``"test"``.

        Raises:
            ResetNeeded: Before the first reset.
        """
        if self._state == "new":
            raise ResetNeeded("Call reset() before evaluate().")
        return self.episodes.evaluate(split)

    def get_state(self) -> dict[str, Any]:
        """The whole state of the training, to be put back by :meth:`set_state`: branch a training and ask "what if".

        Raises:
            ResetNeeded: Before the first reset.
        """
        if self._state == "new":
            raise ResetNeeded("Call reset() before get_state().")
        return {"episodes": self.episodes.get_state(self._members), "state": self._state, "history": list(self._history)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Puts back what :meth:`get_state` returned, here or in another environment made with the same arguments.

        Raises:
            ValueError: If it does not fit, or was taken without a render mode and this environment has one. The environment stays as it was.
        """
        if self.render_mode is not None and not state["history"]:
            raise ValueError("The state has no history to render: it was taken from an environment without a render mode. Make both with one.")
        self.episodes.set_state(state["episodes"], self._members)
        self._state = state["state"]
        self._history = [] if self.render_mode is None else list(state["history"])  # without one, nothing would be added

    def _info(self, outcome: Outcome) -> dict[str, Any]:
        loss, rates = float(outcome.losses[0]), outcome.rates[0]
        if self.render_mode is not None:
            self._history.append((loss, rates.copy()))
        rate = float(rates[0]) if len(rates) == 1 else rates.copy()
        info = {"loss": loss, "learning_rate": rate, "step": int(outcome.steps[0]), "diverged": bool(outcome.diverged[0])}
        if self.mdp.circuit_breaker is not False:
            info["rolled_back"] = bool(outcome.rolled_back[0])
        return info
