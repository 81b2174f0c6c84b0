"""Hugging Face's own Trainer with the callback."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from digits_loop import BATCH, EPOCHS, accuracy, digits, network, outputs_differ, parameters
from torch import Tensor, nn

from bayespare.errors import BayespareError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from bayespare.huggingface import SparsifyCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Classifier(nn.Module):
    """A network as the Trainer wants it: with its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer(
    folder: Path, model: nn.Module, rows: list[dict[str, Any]], callback: Any, **options: Any
) -> Any:
    settings = {"learning_rate": 5e-3, "num_train_epochs": EPOCHS, **options}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    return transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback])


def test_a_trainer_ends_with_a_smaller_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    splits, model = digits(), Classifier()
    rows = [{"x": x, "labels": y} for x, y in zip(splits.train.x, splits.train.y, strict=True)]
    callback = SparsifyCallback(splits.train.x[:4], part="network")
    trainer(tmp_path, model, rows, callback).train()
    small = callback.finished.model
    assert accuracy(small, splits.test) > 0.92
    assert parameters(small) < 0.8 * parameters(network())
    assert parameters(model.network) < parameters(network())
    assert outputs_differ(model.network, small, splits.test.x) < 1e-4


def test_accumulated_batches_take_one_step_of_the_kl(tmp_path: Path) -> None:
    splits = digits()
    rows = [{"x": x, "labels": y} for x, y in zip(splits.train.x, splits.train.y, strict=True)]
    callback = SparsifyCallback(splits.train.x[:4], part="network")
    options = {"max_steps": 6, "gradient_accumulation_steps": 4}
    trainer(tmp_path, Classifier(), rows, callback, **options).train()
    assert callback.loop.taken == callback.loop.steps == 6
    assert callback.loop.batch == 4 * BATCH
    assert callback.loop.method.examples == len(splits.train)


def test_a_bert_loses_neurons(tmp_path: Path) -> None:
    """Of six tokens the first says the label: even or odd. Heads and hidden units are gated."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    model = transformers.BertForSequenceClassification(config)
    ids = torch.randint(0, 32, (512, 6))
    rows = [{"input_ids": row, "labels": row[0] % 2} for row in ids]
    callback = SparsifyCallback(ids[:4])
    before = parameters(model)
    trainer(tmp_path, model, rows, callback).train()
    small = callback.finished.model
    with torch.no_grad():
        guess = small.eval()(ids).logits.argmax(1)
    assert float((guess == ids[:, 0] % 2).float().mean()) > 0.95
    assert parameters(small) < before - 1000
    assert callback.finished.masked_difference < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_best_model_at_end": True, "eval_strategy": "no"}, "load_best_model_at_end=True"),
        ({"gradient_checkpointing": True}, "gradient checkpointing computes layers again"),
    ],
)
def test_a_trainers_own_settings_are_refused_before_it_starts(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.BertForSequenceClassification(config)
    rows = [{"input_ids": row, "labels": row[0] % 2} for row in torch.randint(0, 8, (16, 6))]
    callback = SparsifyCallback(torch.randint(0, 8, (4, 6)))
    with pytest.raises(BayespareError, match=message):
        trainer(tmp_path, model, rows, callback, **options).train()


@pytest.mark.parametrize(
    ("settings", "step", "message"),
    [
        ({}, 3, "cannot be resumed from"),
        ({"world_size": 2}, 0, "cannot be followed by cuts"),
        ({"n_gpu": 2}, 0, "cannot be followed by cuts"),
        ({"fp16": True}, 0, "use bf16=True"),
        ({"gradient_checkpointing": True}, 0, "use gradient_checkpointing=False"),
        ({"load_best_model_at_end": True}, 0, "a checkpoint of the model at another size"),
    ],
)
def test_what_it_cannot_follow_is_refused(
    settings: dict[str, Any], step: int, message: str
) -> None:
    callback = SparsifyCallback(torch.randn(4, 64))
    off = dict.fromkeys(("fp16", "gradient_checkpointing", "load_best_model_at_end"), False)
    arguments = SimpleNamespace(**{"world_size": 1, "n_gpu": 0, **off, **settings})
    state = transformers.TrainerState(global_step=step)
    with pytest.raises(BayespareError, match=message):
        callback.on_train_begin(arguments, state, transformers.TrainerControl())
