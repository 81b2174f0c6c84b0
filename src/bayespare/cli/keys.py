"""The keys of every verb: their types, defaults and meanings, in the order help shows them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bayespare.cli.values import choice, positive, shape, switch, whole
from bayespare.data import Task
from bayespare.data.dataset import Part
from bayespare.data.table_transform import Impute
from bayespare.training.loop import Precision

Settings = Literal["default", "faithful"]

Switch = Annotated[bool, switch()]
Count = Annotated[int | None, whole(1)]


class Keys(BaseModel):
    """Keys of one verb: frozen, typed, refusing unknown ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataKeys(Keys):
    """Which data, and how to read them."""

    data: str | None = Field(
        None,
        description="digits, breast_cancer, wine, iris, diabetes, or a path: "
        ".npz, .csv, .tsv, .parquet, IDX or CIFAR folder",
    )
    target: str | None = Field(None, description="column of a table to predict")
    task: Annotated[Task | None, choice(Task)] = Field(
        None, description="classification or regression; inferred when left out"
    )
    impute: Annotated[Impute | None, choice(Impute)] = Field(
        None, description="fill missing values of a table: mean or median; refused when left out"
    )


class FitKeys(DataKeys):
    """Train a network smaller: what to train on, how, and where the run goes."""

    net: str | None = Field(
        None,
        description="mlp:400,400, lenet300, lenet5, lenet5-wide, or your own module:factory; "
        "left out, mlp:64,32 for tables and mlp:400,400 for the rest",
    )
    method: str = Field("ss-ghs", description="ss-ig, ss-gl or ss-ghs")
    settings: Annotated[Settings, choice(Settings)] = Field(
        "default", description="default (ours) or faithful (the authors')"
    )
    prior: Annotated[
        float | Literal["1/k", "theory"] | None, positive("1/k", "theory", below=1)
    ] = Field(None, description="prior inclusion probability: a number, 1/k or theory")
    tempering: Annotated[float | Literal["auto"], positive("auto")] = Field(
        "auto", description="weight of the KL: chosen for you (auto), or a number"
    )
    max_params: Count = Field(None, description="budget of parameters; without it none is needed")
    epochs: Count = Field(
        None, description="epochs a dense network would get; from the data's size when left out"
    )
    batch: Count = Field(None, description="rows per step; from the data's size when left out")
    quick: Switch = Field(False, description="a tenth of the usual epochs, for a first look")
    seed: Annotated[int, whole(0)] = Field(0, description="seed of everything random")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Annotated[Precision, choice(Precision)] = Field(
        "float32", description="float32 or bf16"
    )
    threads: Count = Field(None, description="CPU threads; PyTorch's choice when left out")
    baseline: Switch = Field(True, description="train a dense network too, to compare with")
    samples: Annotated[int, whole(1)] = Field(32, description="posterior draws for predictions")
    project: str = Field("runs", description="folder the run's folder is made in")
    name: str | None = Field(
        None, description="name of the run's folder; from data, net and method when left out"
    )
    exist_ok: Switch = Field(False, description="replace the run that is in the folder")
    resume: str | None = Field(None, description="folder of a stopped run to go on with")
    cfg: str | None = Field(None, description="file of keys, as `bayespare config` prints them")


class RunKeys(Keys):
    """A run that was fitted before."""

    run: str | None = Field(None, description="folder of the run; may be given without its key")
    net: str | None = Field(
        None, description="the run's own module:factory network, which is never imported unasked"
    )


class PickKeys(RunKeys):
    """Choose another size from a run's frontier, without training."""

    max_params: Count = Field(None, description="most parameters it may have")
    max_macs: Count = Field(None, description="most multiply-accumulates per row it may need")
    name: str | None = Field(None, description="name of the network on the frontier")
    to: str | None = Field(None, description="folder for a copy of the run; in place if left out")


class EvalKeys(RunKeys):
    """Score a run's network on data."""

    data: str | None = Field(None, description="data with targets; the run's own if left out")
    split: Annotated[Part, choice(Part)] = Field(
        "test", description="part of the run's own data: train, valid or test"
    )
    samples: Annotated[int, whole(1)] = Field(32, description="posterior draws")


class PredictKeys(RunKeys):
    """Predict every row of a file, with how sure the network is."""

    data: str | None = Field(None, description="data to predict; targets are not needed")
    out: str | None = Field(None, description="CSV file to write")
    exist_ok: Switch = Field(False, description="replace the file if it exists")
    samples: Annotated[int, whole(1)] = Field(32, description="posterior draws")


class ExplainKeys(DataKeys):
    """Show what can be removed from a network, what is coupled to what, and what is left alone."""

    run: str | None = Field(None, description="folder of a run; may be given without its key")
    net: str | None = Field(None, description="network, as in fit")
    inputs: Annotated[tuple[int, ...] | None, shape()] = Field(
        None, description="shape of one example, such as 1,28,28; not needed with data"
    )
    outputs: Annotated[int, whole(1)] = Field(
        10, description="outputs of the network; not needed with data"
    )


class ConfigKeys(Keys):
    """Print all keys of fit with their defaults, in the form that fit cfg=FILE reads."""


class ReportKeys(Keys):
    """Write a run's report.html again from its files."""

    run: str | None = Field(None, description="folder of the run; may be given without its key")
