"""Pictures of a training."""

from __future__ import annotations

import numpy as np

MOST_NAMED_GROUPS = 8
"""Parameter groups that a legend names."""


def render_training(losses: np.ndarray, rates: np.ndarray, horizon: int, steps_per_action: int) -> np.ndarray:
    """The loss and the rate of a training so far.

    Args:
        losses: Minibatch losses at the observations, ``(t + 1,)``.
        rates: Rates last applied at the observations, of each parameter group, ``(t + 1, G)``.
        horizon: SGD steps of the whole training, the width of the axis.
        steps_per_action: SGD steps between observations.

    Returns:
        An image ``(400, 600, 3)``, uint8.

    Raises:
        ImportError: Without matplotlib; ``pip install lr-env[render]`` brings it.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Rendering needs matplotlib: pip install 'lr-env[render]'.") from error
    # A figure of its own, not pyplot's: nothing global is touched, and no window can open.
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    loss_axes, rate_axes = figure.subplots(2, 1, sharex=True)
    steps = np.minimum(np.arange(len(losses)) * steps_per_action, horizon)
    loss_axes.plot(steps, np.where(np.isfinite(losses), losses, np.nan), color="tab:blue")
    num_groups = rates.shape[1]
    for group, rates_of_group in enumerate(rates.T):  # from the first layers, dark, to the last ones, bright
        color = colormaps["viridis"](group / num_groups) if num_groups > 1 else "tab:orange"
        rate_axes.step(steps, rates_of_group, where="pre", color=color, label=f"group {group}")
    if 1 < num_groups <= MOST_NAMED_GROUPS:
        rate_axes.legend(fontsize="x-small", loc="best", ncols=2)
    for axes, values, label in ((loss_axes, losses, "Minibatch loss"), (rate_axes, rates, "Learning rate")):
        if (values[np.isfinite(values)] > 0).any():
            axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    rate_axes.set_xlim(0, horizon)
    rate_axes.set_xlabel("SGD step")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
