"""Make a network smaller while Lightning's ``Trainer`` trains it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bayespare.errors import BayespareError
from bayespare.own_loop import OwnLoop
from bayespare.training.finish import Finished


class SparsifyCallback(Callback):
    """Give it to ``Trainer(callbacks=[...])``; the loss, optimiser and schedule stay the module's.

    The network shrinks in place. A Trainer's own checkpoints cannot be resumed from: the module is
    built at its whole size.

    Args:
        example: What the network is called with: a tensor, or a tuple of its first arguments.
        part: Name of the attribute of the module that holds the network.
        **options: Of :class:`bayespare.own_loop.OwnLoop`: ``method``, ``tempering``, ``explore``,
            ``seed`` and the method's settings.

    Attributes:
        finished: After training: the compact network of stock layers (``.model``), with its
            posterior and verdict.
    """

    finished: Finished | None = None

    def __init__(
        self, example: Tensor | tuple[Tensor, ...], *, part: str = "network", **options: Any
    ) -> None:
        self.example, self.part, self.options = example, part, options
        self.due = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the method.

        Raises:
            BayespareError: If a checkpoint is resumed, there are several processes or optimisers,
                the module has no such part, or the loader does not say how many rows it has.
        """
        if trainer.world_size > 1:
            raise BayespareError(
                "SparsifyCallback: a Trainer over several processes cannot be followed by cuts; "
                "use devices=1, or bayespare.sparsify under torchrun"
            )
        if trainer.global_step:
            raise BayespareError("SparsifyCallback: a Trainer's checkpoint cannot be resumed from")
        if len(trainer.optimizers) != 1:
            raise BayespareError("SparsifyCallback: the module must have one optimiser")
        try:
            network = pl_module.get_submodule(self.part)
        except AttributeError:
            raise BayespareError(
                f"SparsifyCallback: the module has no part {self.part!r}; name the attribute that "
                "holds the network with part="
            ) from None
        loader: Any = trainer.train_dataloader
        examples, batch = _sizes(loader)
        self.loop = OwnLoop(
            network,
            self.example,
            examples=examples,
            steps=int(trainer.estimated_stepping_batches),
            batch=batch * trainer.accumulate_grad_batches,
            **self.options,
        )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the gradient of the KL, once for all accumulated batches."""
        self.loop.before_step()
        self.due = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *batch: Any, **others: Any
    ) -> None:
        """Step the posterior, and cut, if the module's optimiser has stepped."""
        if self.due:
            self.due = False
            self.loop.after_step(trainer.optimizers[0])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the compact network."""
        self.finished = self.loop.finish(trainer.optimizers[0])


def _sizes(loader: Any) -> tuple[int, int]:
    """Rows of the training data, and of a batch: on average, where the batches are sampled."""
    try:
        rows, batches = len(loader.dataset), loader.batch_sampler
        batch = loader.batch_size or getattr(batches, "batch_size", None)
        return rows, batch or max(1, round(rows / len(batches)))
    except (AttributeError, TypeError, ZeroDivisionError):
        raise BayespareError(
            "SparsifyCallback: the training loader does not say how many rows the data and a "
            "batch have; use one DataLoader over a dataset with a length, with batch_size= or "
            "batch_sampler="
        ) from None
