"""The keys of every verb: their types, defaults and meanings, in the order help shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, create_model

from bayespare.bayes.curvature.passes import Structure
from bayespare.bayes.marginal import PriorKind
from bayespare.bayes.posterior import Predictive
from bayespare.bayes.scores import Scope
from bayespare.cli.values import (
    choice,
    duration,
    name_groups,
    names,
    positive,
    several,
    shape,
    shares,
    switch,
    whole,
)
from bayespare.data import Standardized, Task
from bayespare.data.dataset import Part
from bayespare.data.read import is_table
from bayespare.data.table_transform import Impute
from bayespare.export import Format
from bayespare.options import USUAL_RATE, Unit
from bayespare.posthoc.settings import Criterion
from bayespare.posthoc.settings import Unit as PosthocUnit
from bayespare.select import Rule
from bayespare.training.budget import Budget
from bayespare.training.loop import Precision

Settings = Literal["default", "faithful"]
GivenStandardized = Literal["auto", Standardized]

Switch = Annotated[bool, switch()]
Count = Annotated[int | None, whole(1)]


class Keys(BaseModel):
    """Keys of one verb: frozen, typed, refusing unknown ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def default_of(cls, key: str) -> Any:
        """What a key is when it is left out; None where that depends on the others."""
        field = cls.model_fields[key]
        return None if field.default_factory else field.default


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
    drop: Annotated[tuple[str, ...], names()] = Field(
        (), description="columns of a table to leave out: id,date"
    )
    standardize: Annotated[str, choice(Standardized)] = Field(
        "both",
        description="what is brought to mean 0 and deviation 1: both (inputs and a numeric "
        "target), inputs, target or neither",
    )

    @property
    def reading(self) -> dict[str, Any]:
        """How to read the data, as :func:`bayespare.data.load` takes it."""
        names = ("target", "task", "impute", "drop", "standardize")
        return {name: getattr(self, name) for name in names}


def default_method(known: dict[str, Any]) -> str:
    """The method of a fit when none is asked for: of tables the one that judges their columns.

    Args:
        known: The keys before it, ``data`` among them.
    """
    return "node-pip" if is_table(known.get("data") or "") else "ss-ghs"


class NetKeys(DataKeys):
    """What to make smaller, and how to decide about it."""

    net: str | None = Field(
        None,
        description="mlp:400,400, lenet300, lenet5, resnet20, resnet18, wrn:16,4, vit, mixer, ... "
        "or your own module:factory; "
        "left out, mlp:64 for tables and mlp:400,400 for the rest",
    )
    method: str = Field(
        default_factory=default_method,
        description="ss-ig, ss-gl, ss-ghs, node-pip, spam, bmr, bmr-rhs, tiered-ff, flat-ff or "
        "flat-map; left out, node-pip for CSV and Parquet tables and ss-ghs for the rest",
    )
    settings: Annotated[Settings, choice(Settings)] = Field(
        "default", description="default (ours) or faithful (the authors')"
    )
    unit: Annotated[Unit, choice(Unit)] = Field(
        "unit",
        description="what is removed: unit (units, channels and input features), feature (input "
        "features alone), or head and weight where the method offers them",
    )
    keep: Annotated[tuple[str, ...], names()] = Field(
        (), description="groups, layers or parts of the network that stay whole: conv1,fc1"
    )
    prior: Annotated[
        float | Literal["1/k", "theory"] | PriorKind | None,
        positive("1/k", "theory", *get_args(PriorKind), below=1),
    ] = Field(
        None,
        description="prior inclusion probability: a number, 1/k or theory; of spam, who shares a "
        "precision: scalar, layer, unit or parameter",
    )
    scope: Annotated[Scope | None, choice(Scope)] = Field(
        None, description="of spam: single weights are ranked global, or in each layer"
    )
    curvature: Annotated[Structure | None, choice(Structure)] = Field(
        None, description="of spam: diag, or kfac (Kronecker factors)"
    )
    max_memory_gb: Annotated[float | None, positive()] = Field(
        None, description="of spam: most memory its curvature may take, refused before it is taken"
    )
    tempering: Annotated[float | Literal["auto"], positive("auto")] = Field(
        "auto", description="weight of the KL: chosen for you (auto), or a number"
    )


class BudgetKeys(Keys):
    """What the network may cost; without any of them the evidence alone decides."""

    max_params: Count = Field(None, description="most parameters the network may have")
    max_macs: Count = Field(
        None, description="most multiply-accumulates it may need for one example"
    )
    max_latency_ms: Annotated[float | None, positive()] = Field(
        None, description="most milliseconds it may take for one example, on one thread, here"
    )
    sparsity: Annotated[float | None, positive(below=1)] = Field(
        None,
        description="least share of the parameters to remove, in place of max_params; with "
        "unit=weight, to zero",
    )

    @property
    def budget(self) -> Budget:
        """The limits as one value."""
        return Budget(self.max_params, self.max_macs, self.max_latency_ms, self.sparsity)


class FitKeys(BudgetKeys, NetKeys):
    """Train a network smaller: what to train on, how, and where the run goes."""

    epochs: Count = Field(
        None, description="epochs a dense network would get; from the data's size when left out"
    )
    time: Annotated[float | None, duration()] = Field(
        None, description="how long training may take, in place of epochs: 90s, 10m or 2h"
    )
    quick: Switch = Field(
        False, description="a tenth of the usual epochs and no dense network, for a first look"
    )
    uniform: Switch = Field(
        False,
        description="write a Hugging Face network also in the form that from_pretrained loads",
    )
    finetune: Annotated[int | None, whole(0)] = Field(
        None,
        description="epochs of training after the decision, for each size; 0: none; a share of "
        "the epochs when left out",
    )
    survivors: Switch = Field(
        True,
        description="refit what survives by least squares where a smaller network goes on from a "
        "larger one",
    )
    batch: Count = Field(None, description="rows per step; from the data's size when left out")
    lr: Annotated[float, positive()] = Field(
        USUAL_RATE,
        description="learning rate of the dense network; all others keep their proportion to it",
    )
    seed: Annotated[int, whole(0)] = Field(0, description="seed of everything random")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Annotated[Precision, choice(Precision)] = Field(
        "float32", description="float32 or bf16"
    )
    threads: Count = Field(None, description="CPU threads; PyTorch's choice when left out")
    baseline: Switch = Field(True, description="train a dense network too, to compare with")
    samples: Annotated[int, whole(1)] = Field(32, description="posterior draws for predictions")
    predictive: Annotated[Predictive, choice(Predictive)] = Field(
        "draws",
        description="of spam, how its posterior predicts: draws of networks, of the outputs of the "
        "linearised network (linear), or their closed form (probit)",
    )
    project: str = Field("runs", description="folder the run's folder is made in")
    name: str | None = Field(
        None, description="name of the run's folder; from data, net and method when left out"
    )
    exist_ok: Switch = Field(False, description="replace the run that is in the folder")
    resume: str | None = Field(None, description="folder of a stopped run to go on with")
    cfg: str | None = Field(None, description="file of keys, as `bayespare config` prints them")


class SweepBase(Keys):
    """Fit a grid of methods, seeds and settings, in any number of processes.

    The keys of fit come with it, as text: several values have commas between them, and a range of
    numbers is 1e-4..1e-2.
    """

    seeds: Annotated[int, whole(1)] = Field(1, description="seeds of every configuration, from 0")
    jobs: Annotated[int, whole(1)] = Field(1, description="processes, each with one thread")
    trials: Count = Field(
        None, description="points at which ranges such as lr=1e-4..1e-2 are tried"
    )
    objective: Annotated[tuple[str, ...], several("error", "params", "latency")] = Field(
        ("error",), description="what the study minimises: error, params, latency or several"
    )
    storage: str | None = Field(
        None,
        description="SQL URL of the study, such as postgresql://host/name; a journal in the "
        "project's folder if left out, which several machines may share too",
    )
    retry: Switch = Field(False, description="try cells again that failed before")
    project: str = Field("runs/sweep", description="folder of the study and of the cells' folders")


_TEXTS: dict[str, Any] = {
    key: (str | None, Field(None, description=field.description))
    for key, field in FitKeys.model_fields.items()
    if key not in ("project", "name", "exist_ok", "resume", "threads")
}
SweepKeys = create_model("SweepKeys", __base__=SweepBase, __doc__=SweepBase.__doc__, **_TEXTS)


class RunKeys(Keys):
    """A run that was fitted before."""

    run: str | None = Field(None, description="folder of the run; may be given without its key")
    net: str | None = Field(
        None, description="the run's own module:factory network, which is never imported unasked"
    )


class PickKeys(BudgetKeys, RunKeys):
    """Choose another size from a run's frontier, without training."""

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


class ExportKeys(RunKeys):
    """Write a run's network to an ONNX or torch.export file, checked against it."""

    format: Annotated[Format, choice(Format)] = Field(
        "onnx", description="onnx, or torch for torch.export.load"
    )
    out: str | None = Field(
        None, description="file to write; model.onnx or model.pt2 in the run's folder if left out"
    )
    exist_ok: Switch = Field(False, description="replace the file if it exists")


class PosthocKeys(DataKeys):
    """A network that is trained already, and what to do with it."""

    net: str | None = Field(None, description="network, as in fit; or your own module:factory")
    weights: str | None = Field(
        None,
        description="its trained weights: a state dict, .safetensors, .pt or .pth, or a checkpoint "
        "of training that holds one",
    )
    standardize: Annotated[str, choice(GivenStandardized)] = Field(
        "auto",
        description="what was brought to mean 0 and deviation 1 when it was trained: both (inputs "
        "and a numeric target), inputs, target or neither; auto finds out by what fits best",
    )
    unit: Annotated[PosthocUnit, choice(PosthocUnit)] = Field(
        "unit", description="unit: the network gets smaller; weight: weights become zero"
    )
    survivors: Switch = Field(True, description="refit what survives by least squares")
    finetune: Annotated[int, whole(0)] = Field(
        15, description="epochs of training that each finished size gets"
    )
    lr: Annotated[float, positive()] = Field(5e-3, description="learning rate of the last training")
    force: Switch = Field(False, description="go on even if the network seems untrained")
    max_memory_gb: Annotated[float | None, positive()] = Field(
        None, description="most memory the curvature may take, refused before it is taken"
    )
    seed: Annotated[int, whole(0)] = Field(0, description="seed of the split and everything random")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: Count = Field(None, description="CPU threads; PyTorch's choice when left out")
    project: str = Field("runs", description="folder the run's folder is made in")
    name: str | None = Field(None, description="name of the run's folder")
    exist_ok: Switch = Field(False, description="replace the run that is in the folder")
    resume: str | None = Field(None, description="folder of a stopped run to go on with")


class ReduceKeys(PosthocKeys):
    """Make a trained network smaller, without training it anew."""

    rounds: Annotated[int, whole(1)] = Field(16, description="most rounds of removal")
    max_params: Count = Field(None, description="most parameters the network may have")
    max_macs: Count = Field(None, description="most multiply-accumulates for one example")
    sparsity: Annotated[float | None, positive(below=1)] = Field(
        None, description="least share of the parameters to remove, or of the weights to zero"
    )


class PruneKeys(PosthocKeys):
    """Remove a given share from a trained network, by any of the usual rankings."""

    criterion: Annotated[Criterion, choice(Criterion)] = Field(
        "opd", description="ranked by opd, magnitude, l2, snip, grasp, taylor or random"
    )
    sparsity: Annotated[tuple[float, ...], shares()] = Field(
        (),
        description="share of the weights, or of each layer's units, that goes; several: 0.5,0.9",
    )
    scope: Annotated[Scope | None, choice(Scope)] = Field(
        None,
        description="rank global or in each layer; left out: weights global, units in each layer",
    )
    prior: Annotated[PriorKind, choice(PriorKind)] = Field(
        "layer", description="who shares a prior precision, for opd"
    )
    rounds: Annotated[int, whole(1)] = Field(1, description="removals on the way to the share")
    between: Annotated[int, whole(0)] = Field(
        1, description="epochs of training after each of them but the last"
    )


class SelectKeys(DataKeys):
    """Rank the columns of a table by the probability that they belong in the model."""

    method: str = Field("node-pip", description="any method that judges input features")
    net: str = Field("mlp:32", description="network that is fitted")
    rule: Annotated[Rule, choice(Rule)] = Field(
        "median", description="median: more probable than not; fdr: a bounded share of noise"
    )
    fdr: Annotated[float, positive(below=1)] = Field(
        0.1, description="bound of the expected share of noise, for rule=fdr"
    )
    max_features: Count = Field(None, description="most inputs to keep")
    groups: Annotated[tuple[tuple[str, ...], ...], name_groups()] = Field(
        (), description="columns that are kept or dropped together, as in a+b,c+d+e"
    )
    correlation: Annotated[float, positive(below=1)] = Field(
        0.95, description="absolute correlation above which columns share their evidence"
    )
    seeds: Annotated[int, whole(1)] = Field(1, description="fits that are averaged")
    epochs: Count = Field(None, description="passes over the data; from their size if left out")
    seed: Annotated[int, whole(0)] = Field(0, description="seed of the split and the first fit")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: Count = Field(None, description="CPU threads; PyTorch's choice when left out")
    project: str = Field("runs", description="folder the results' folder is made in")
    name: str | None = Field(None, description="name of that folder; from the data if left out")


class ConfigKeys(Keys):
    """Print all keys of fit with their defaults, in the form that fit cfg=FILE reads."""


class ReportKeys(Keys):
    """Write a run's report.html again from its files."""

    run: str | None = Field(None, description="folder of the run; may be given without its key")
