"""Make a network smaller while Hugging Face's ``Trainer`` trains it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bayespare.errors import BayespareError
from bayespare.own_loop import OwnLoop
from bayespare.training.finish import Finished


class SparsifyCallback(TrainerCallback):
    """Give it to ``Trainer(callbacks=[...])``; the loss, optimiser and schedule stay the Trainer's.

    The model shrinks in place. A Trainer's own checkpoints cannot be resumed from: it builds the
    model at its whole size.

    Args:
        example: What the model is called with: a tensor, or a tuple of its first arguments.
        part: Name of the submodule to make smaller; the default is all of the model.
        **options: Of :class:`bayespare.own_loop.OwnLoop`: ``method``, ``tempering``, ``explore``,
            ``seed`` and the method's settings.

    Attributes:
        finished: After training: the compact part of stock layers (``.model``), with its posterior
            and verdict.
    """

    finished: Finished | None = None

    def __init__(
        self, example: Tensor | tuple[Tensor, ...], *, part: str = "", **options: Any
    ) -> None:
        self.example, self.part, self.options = example, part, options

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Attach the method.

        Raises:
            BayespareError: If a checkpoint is resumed or is to be loaded at the end, there are
                several processes or GPUs, the loss is scaled, or activations are checkpointed.
        """
        if args.world_size > 1 or args.n_gpu > 1:
            raise BayespareError(
                "SparsifyCallback: a Trainer over several processes or GPUs cannot be followed by "
                "cuts; train in one, or use bayespare.sparsify under torchrun"
            )
        if args.fp16:
            raise BayespareError(
                "SparsifyCallback: fp16=True scales the loss, and the KL would be scaled with it; "
                "use bf16=True"
            )
        if args.gradient_checkpointing or getattr(
            given.get("model"), "is_gradient_checkpointing", False
        ):
            raise BayespareError(
                "SparsifyCallback: gradient checkpointing computes layers again when the weights "
                "drawn for them are gone; use gradient_checkpointing=False"
            )
        if args.load_best_model_at_end:
            raise BayespareError(
                "SparsifyCallback: load_best_model_at_end=True would load a checkpoint of the "
                "model at another size; use load_best_model_at_end=False"
            )
        if state.global_step:
            raise BayespareError("SparsifyCallback: a Trainer's checkpoint cannot be resumed from")
        self.loop = OwnLoop(
            given["model"].get_submodule(self.part),
            self.example,
            examples=len(given["train_dataloader"].dataset),
            steps=state.max_steps,
            batch=args.train_batch_size * args.gradient_accumulation_steps,
            **self.options,
        )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Add the gradient of the KL, once for all accumulated batches."""
        self.loop.before_step()

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Step the posterior, and cut."""
        self.loop.after_step(_inner(given["optimizer"]))

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Make the compact network."""
        self.finished = self.loop.finish(_inner(given["optimizer"]))


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser that accelerate has wrapped."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
