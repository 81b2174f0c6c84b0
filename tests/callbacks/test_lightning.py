"""Lightning's own Trainer with the callback."""

from pathlib import Path
from typing import Any

import pytest
import torch
from digits_loop import BATCH, EPOCHS, accuracy, digits, network, outputs_differ, parameters
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from bayespare.errors import BayespareError

pytestmark = pytest.mark.filterwarnings("ignore")
lightning = pytest.importorskip("lightning.pytorch")

from bayespare.lightning import SparsifyCallback, _sizes  # noqa: E402


class Classifier(lightning.LightningModule):
    """A network as a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def fit(
    module: Classifier,
    callback: SparsifyCallback,
    folder: Path,
    loader: DataLoader[Any] | None = None,
    **options: Any,
) -> None:
    train = digits().train
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_epochs": EPOCHS, **options},
    )
    rows = TensorDataset(train.x, train.y)
    trainer.fit(module, loader or DataLoader(rows, BATCH, shuffle=True, drop_last=True))


def test_a_trainer_ends_with_a_smaller_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    splits, module = digits(), Classifier()
    callback = SparsifyCallback(splits.train.x[:4])
    fit(module, callback, tmp_path)
    assert callback.finished is not None
    small = callback.finished.model
    assert accuracy(small, splits.test) > 0.92
    assert parameters(small) < 0.8 * parameters(network())
    assert outputs_differ(module.network, small, splits.test.x) < 1e-4


def test_accumulated_batches_take_one_step_of_the_kl(tmp_path: Path) -> None:
    callback = SparsifyCallback(digits().train.x[:4])
    fit(Classifier(), callback, tmp_path, max_steps=6, accumulate_grad_batches=4, max_epochs=-1)
    assert callback.loop.taken == callback.loop.steps == 6
    assert callback.loop.batch == 4 * BATCH


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    callback = SparsifyCallback(digits().train.x[:4], part="body")
    with pytest.raises(BayespareError, match="no part 'body'"):
        fit(Classifier(), callback, tmp_path, max_epochs=1)


ROWS = TensorDataset(torch.zeros(50, 2), torch.zeros(50))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(ROWS, 8, shuffle=True),
        DataLoader(ROWS, batch_sampler=BatchSampler(RandomSampler(ROWS), 8, False)),
        DataLoader(ROWS, batch_sampler=[list(range(i, i + 8)) for i in range(0, 48, 8)]),
    ],
)
def test_sizes_of_batches_are_known_however_they_are_made(loader: DataLoader[Any]) -> None:
    assert _sizes(loader) == (50, 8)


def test_a_trainer_over_sampled_batches(tmp_path: Path) -> None:
    callback = SparsifyCallback(digits().train.x[:4])
    rows = TensorDataset(digits().train.x, digits().train.y)
    batches = BatchSampler(RandomSampler(rows), BATCH, drop_last=True)
    fit(Classifier(), callback, tmp_path, DataLoader(rows, batch_sampler=batches), max_steps=3)
    assert callback.loop.taken == 3
    assert callback.loop.batch == BATCH


@pytest.mark.parametrize("loader", [DataLoader(ROWS, batch_size=None), [1, 2]])
def test_a_loader_that_does_not_say_its_sizes_is_refused(loader: Any) -> None:
    with pytest.raises(BayespareError, match="does not say how many rows"):
        _sizes(loader)
