"""A controller in the ``Trainer`` of Hugging Face's Transformers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lr_env.controllers import BoundController
from lr_env.scheduler import ControllerLR, set_rate

try:
    from transformers import Trainer
except ImportError as error:
    raise ImportError("lr_env.integrations.hugging_face needs Transformers: pip install 'lr-env[huggingface]'.") from error


class ControllerTrainer(Trainer):
    """A ``Trainer`` whose scheduler is a :class:`lr_env.ControllerLR`.

    As in::

        trainer = ControllerTrainer(model, TrainingArguments("runs", max_steps=10_000), train_dataset=data, controller="controller.safetensors")
        trainer.train()

    With a trainer of another class, as in ``class ControlledSeq2SeqTrainer(ControllerTrainer, Seq2SeqTrainer): pass``.

    - **Gradient.** Of the whole step, as it is before clipping: micro-batches accumulated, ranks averaged, and as if never scaled in fp16. The
      arguments' ``max_grad_norm`` counts as ``clip_norm``.
    - **Loss.** What the trainer logs: the sum of what ``training_step`` returns for the micro-batches of a step, which is their mean, or for
      models that are given the number of labels of all of them the mean over these; the mean over ranks.
    - **Rates** start at ``learning_rate``, or at those of an optimizer that was given; ``lr_scheduler_type`` and warm-up play no part.
    - **Checkpoints** hold the controller's state in place of a scheduler's; ``train(resume_from_checkpoint=…)`` goes on from there.

    Args:
        *args: Of ``Trainer``.
        controller: As ``ControllerLR`` takes it.
        controller_options: Further arguments of ``ControllerLR``. ``total_steps`` is the trainer's number of steps unless it is given.
        **kwargs: Of ``Trainer``.

    Attributes:
        controller_lr: The ``ControllerLR``, from ``train`` on.

    Raises:
        ValueError: If a scheduler was given too, or parameters are sharded over processes.
    """

    def __init__(
        self,
        *args: Any,
        controller: BoundController | str | os.PathLike[str],
        controller_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "ControllerTrainer works on one device and with DistributedDataParallel, not with FSDP or DeepSpeed: where parameters are sharded, "
                "each process sees only a part of the gradient."
            )
        if self.lr_scheduler is not None:
            raise ValueError("ControllerTrainer makes its scheduler itself: give optimizers=(optimizer, None).")
        self._controller, self._controller_options = controller, dict(controller_options or {})
        self._losses: list[Tensor] = []

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> ControllerLR:
        """A new ``ControllerLR`` of the optimizer, whose rates begin anew where it has been trained before."""
        chosen: Any = self.optimizer if optimizer is None else optimizer
        for group in chosen.param_groups:
            set_rate(group, group.get("initial_lr", group["lr"]))
        options = {"total_steps": num_training_steps, "clip_norm": self.args.max_grad_norm or None, **self._controller_options}
        self.controller_lr = ControllerLR(getattr(chosen, "optimizer", chosen), self._controller, **options)  # accelerate wraps optimizers
        self.lr_scheduler = self.controller_lr  # type: ignore[assignment]
        self._losses.clear()
        return self.controller_lr

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the trainer's; sets the rates after the last ``backward`` of a step, before gradients are clipped."""
        loss: Tensor = super().training_step(*args, **kwargs)
        self._losses.append(loss)
        if self.accelerator.sync_gradients:
            with _unscaled(self.controller_lr.optimizer, self.accelerator.scaler):
                self.controller_lr.step(torch.stack(self._losses).sum())
            self._losses.clear()
        return loss


@contextmanager
def _unscaled(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> Iterator[None]:
    """Unscales gradients for a while, exactly where scales are powers of two; the trainer could not clip what ``unscale_`` has unscaled."""
    if scaler is None:
        yield
        return
    scale = scaler.get_scale()
    torch._foreach_mul_(_gradients(optimizer), 1 / scale)
    yield
    torch._foreach_mul_(_gradients(optimizer), scale)  # perhaps others than before: those of the safe state


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter.grad for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
