"""A run folder back to a network, its posterior and its verdict; no code in it is ever run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from bayespare import nets
from bayespare.bayes.posterior import GaussianPosterior, Predictive
from bayespare.data import Target, Task, Transform, transform_from_json
from bayespare.errors import BayespareError, did_you_mean
from bayespare.given import single_precision
from bayespare.lookups import check_lookups
from bayespare.measure import Prediction, predict
from bayespare.nets import registry
from bayespare.result import MODEL, POSTERIOR, summary_line
from bayespare.structure import Plan, Verdict, compact
from bayespare.structure.closure import with_biases
from bayespare.structure.storage import unpack
from bayespare.training.checkpoint import check_sum, read_json, read_tensors

MOST_INPUTS = 2**28
"""More numbers than this in one example mean a damaged file."""

MOST_UNITS = 2**26
"""More units than this in one group mean a damaged file."""


class RunConfig(BaseModel):
    """What ``config.json`` must hold for a run to be loaded; it holds more.

    Attributes:
        net: The text of ``net=``; None when the network was given in Python.
        inputs: Shape of one example.
        outputs: Size of the network's output.
        tokens: Whether inputs are token ids, not numbers.
        task: ``classification`` or ``regression``.
        classes: Labels in the order of their index.
        features: Names of the flattened inputs.
        target_scale: Mean and standard deviation of the training targets.
        transform: What turned the data into inputs, as JSON.
        target: How labels or values were written, as JSON.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    net: str | None = None
    inputs: tuple[int, ...]
    outputs: int = Field(ge=1)
    tokens: bool = False
    task: Task
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    target_scale: tuple[float, float] = (0.0, 1.0)
    transform: dict[str, Any] | None = None
    target: dict[str, Any] | None = None

    def example(self, rows: int = 1) -> Tensor:
        """Inputs that the network runs on, the same every time: random, of token ids the first."""
        shape = (rows, *self.inputs)
        if self.tokens:
            return torch.zeros(shape, dtype=torch.int64)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    @classmethod
    def read(cls, folder: Path) -> RunConfig:
        """Read ``config.json`` of a run folder.

        Raises:
            BayespareError: If it is missing or damaged.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise BayespareError(f"{folder}: holds no run (no config.json)")
        try:
            config = cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise BayespareError(f"{path}: {field}: {first['msg']}; the file is damaged") from None
        if not config.inputs or min(config.inputs) < 1 or math.prod(config.inputs) > MOST_INPUTS:
            raise BayespareError(f"{path}: inputs {config.inputs} are no shape; it is damaged")
        return config


@dataclass(frozen=True, eq=False, repr=False)
class LoadedRun:
    """A run read back from its folder.

    Attributes:
        folder: Where it lies.
        model: The compact network, in evaluation mode, on the CPU.
        posterior: Spread of its parameters.
        plan: What could be removed.
        verdict: What stays.
        config: What was asked for.
        noise_std: Standard deviation of the target's noise, standardised; regression only.
        log_odds: Log posterior odds of every unit at the decision, nats, per group; infinite for
            a unit that was never in question.
    """

    folder: Path
    model: nn.Module
    posterior: GaussianPosterior
    plan: Plan
    verdict: Verdict
    config: RunConfig
    noise_std: float | None = None
    log_odds: Mapping[str, Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        """As of a :class:`bayespare.Result`; of a network that was not measured its size."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        with suppress(BayespareError, AttributeError, KeyError, TypeError, ValueError):
            metrics = read_json(self.folder / "metrics.json")
            if metrics["compact"]["parameters"] == size:
                return f"{self.folder}: {summary_line(metrics)}"
        return f"{self.folder}: params {size:,}"

    def __repr__(self) -> str:
        return f"<bayespare.LoadedRun {self}>"

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of their index; ``()`` for regression."""
        return self.config.classes

    @property
    def transform(self) -> Transform:
        """What turns raw data into inputs.

        Raises:
            BayespareError: If the run was made in Python from tensors, or the file is damaged.
        """
        if self.config.transform is None:
            raise BayespareError(
                f"{self.folder}: the run was fitted on tensors, so it cannot read files; use "
                "bayespare.load(folder, model).predict(x)"
            )
        with _in_file(self.folder / "config.json"):
            return transform_from_json(self.config.transform)

    @property
    def target(self) -> Target:
        """How labels or target values are written.

        Raises:
            BayespareError: If the file is damaged.
        """
        with _in_file(self.folder / "config.json"):
            if self.config.target is not None:
                return Target.from_json(self.config.target)
        return Target(self.config.task, self.config.classes, self.config.target_scale)

    def predict(self, x: Tensor, *, samples: int = 32, averaged: bool = True) -> Prediction:
        """Predict as :meth:`bayespare.Result.predict` did, to the last bit on the same machine.

        Args:
            x: Inputs as the network was trained on, shape ``(N, ...)``.
            samples: Posterior draws.
            averaged: Average over the posterior; otherwise its mean alone predicts.

        Raises:
            BayespareError: If it does not fit the network.
        """
        x = self.as_read(x)
        try:
            return predict(
                self.model,
                x,
                task=self.config.task,
                posterior=self.posterior if averaged else None,
                samples=samples,
                noise_std=self.noise_std,
                target_scale=self.config.target_scale,
            )
        except IndexError:
            check_lookups(self.model, {"the inputs": x})
            raise

    def as_read(self, x: Tensor) -> Tensor:
        """Inputs as the network takes them: token ids, as files are read, are whole numbers again.

        Raises:
            BayespareError: If they are none.
        """
        if not self.config.tokens:
            return x
        found = x.to(torch.int64)
        if not torch.equal(found.to(x.dtype), x):
            raise BayespareError("the network looks up token ids, but the inputs hold decimals")
        return found


def load(
    folder: str | Path, model: nn.Module | None = None, *, point: str | None = None
) -> LoadedRun:
    """Read a run folder back.

    Args:
        folder: What ``fit`` or :meth:`bayespare.Result.save` wrote.
        model: The network that was made smaller, of the original size, any weights; needed when
            it was the user's own. It is not changed.
        point: Name of another network of the frontier.

    Raises:
        BayespareError: If a file is missing or damaged, sizes or names do not fit the network, or
            the network is the user's own and not given.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BayespareError(f"{folder}: there is no such folder")
    refuse_links(folder)
    check_finished(folder)
    at = folder if point is None else _point_folder(folder, point)
    config = RunConfig.read(folder)
    plan = read_plan(folder)
    verdict, added, noise_std, log_odds, predictive = _read_verdict(at / "verdict.json", plan)
    dense = dense_network(folder, config, virtual=True) if model is None else model
    if added:
        with _in_file(at / "verdict.json"):
            dense, closed = with_biases(dense, plan, added)
        verdict = replace(verdict, plan=closed)
    with _in_file(folder / "structure.json"):
        try:
            small = single_precision(compact(dense, verdict))
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise BayespareError(f"the plan does not fit the network ({error})") from error
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    with _in_file(at / "model.safetensors"):
        tensors = unpack(read_tensors(at / "model.safetensors"), shapes)
    _fill(small, tensors, at / "model.safetensors")
    small.eval()
    _probe(small, config, at / "model.safetensors")
    with _in_file(at / "posterior.safetensors"):
        spread = unpack(read_tensors(at / "posterior.safetensors"), shapes)
        posterior = GaussianPosterior(spread, predictive=predictive).checked(small)
    _check_sums(at)
    return LoadedRun(folder, small, posterior, plan, verdict, config, noise_std, log_odds)


def _check_sums(at: Path) -> None:
    """Refuse weights of the right shape that are not the ones that were written."""
    sums = read_json(at / "verdict.json").get("sha256", {})
    if not isinstance(sums, dict):
        raise BayespareError(f"{at / 'verdict.json'}: the file is damaged (sha256)")
    for name in (MODEL, POSTERIOR):
        if name in sums:
            check_sum(at / name, str(sums[name]))


def refuse_links(folder: Path) -> None:
    """Refuse a run folder with a link that leads out of it: what is written would go elsewhere.

    Raises:
        BayespareError: The message names the link.
    """
    inside = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise BayespareError(
                f"{path}: is a link that leads out of the run's folder; put the file itself there"
            )


def dense_network(folder: Path, config: RunConfig, *, virtual: bool = False) -> nn.Module:
    """Build the network of a run at its original size, with untrained weights.

    Args:
        folder: Of the run, for messages.
        config: Of the run.
        virtual: Give it shapes but no memory.

    Raises:
        BayespareError: If the network is the user's own: its code is not run because a file says
            so.
    """
    if config.net is None:
        raise BayespareError(
            f"{folder}: the network was given in Python; give it again: "
            "bayespare.load(folder, model)"
        )
    name = config.net.partition(":")[0]
    if registry.builder(name) is None:
        raise BayespareError(
            f"{folder}: the network {config.net!r} is your own code, which loading never imports; "
            f"give it: net={config.net}, in Python bayespare.load(folder, model)"
        )
    with torch.device("meta" if virtual else "cpu"):
        return nets.build(config.net, inputs=config.inputs, outputs=config.outputs, seed=0)


def read_plan(folder: Path) -> Plan:
    """Read ``structure.json`` of a run folder.

    Raises:
        BayespareError: If it is missing or damaged.
    """
    path = folder / "structure.json"
    with _in_file(path):
        plan = Plan.from_json(read_json(path))
        for group in plan.groups:
            if not 0 < group.size <= MOST_UNITS:
                raise BayespareError(f"the plan is damaged: {group.name!r} has {group.size} units")
    return plan


def _read_verdict(
    path: Path, plan: Plan
) -> tuple[Verdict, list[str], float | None, dict[str, Tensor], Predictive]:
    """Which units stay, biases that were added, noise, log-odds, how the posterior predicts."""
    data = read_json(path)
    try:
        keep = {}
        for name, indices in data["keep"].items():
            with _in_file(path):
                size = plan[name].size
            line = torch.zeros(size, dtype=torch.bool)
            chosen = torch.tensor(indices, dtype=torch.int64)
            if chosen.dim() != 1 or (len(chosen) and int(chosen.min()) < 0):
                raise ValueError(f"indices of {name!r}")
            line[chosen] = True
            keep[str(name)] = line
        added = [str(name) for name in data.get("added_biases", [])]
        noise = data["noise_std"]
        noise_std = None if noise is None else float(noise)
        log_odds = {
            str(name): torch.tensor([math.inf if v is None else float(v) for v in values])
            for name, values in data.get("log_odds", {}).items()
        }
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise BayespareError(f"{path}: the file is damaged ({error})") from error
    return Verdict(plan, keep), added, noise_std, log_odds, data.get("predictive", "draws")


def _fill(small: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put the tensors of a file into a network, after checking names, shapes and types."""
    wanted = small.state_dict()
    for name in wanted:
        if name not in tensors:
            raise BayespareError(
                f"{path}: has no {name!r}{did_you_mean(name, tensors)}; the run is of another "
                "network"
            )
    for name, tensor in tensors.items():
        if name not in wanted:
            raise BayespareError(
                f"{path}: the network has no {name!r}{did_you_mean(name, wanted)}; the run is of "
                "another network"
            )
        ours = wanted[name]
        if tensor.shape != ours.shape or tensor.dtype != ours.dtype:
            raise BayespareError(
                f"{path}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, the network "
                f"needs {ours.dtype} of shape {tuple(ours.shape)}"
            )
    tied = _tied(small)
    small.load_state_dict(dict(tensors), strict=True, assign=True)
    held = small.state_dict(keep_vars=True)
    for first, *others in tied:
        for name in others:
            if not torch.equal(tensors[first], tensors[name]):
                raise BayespareError(
                    f"{path}: {first} and {name} differ, in the network they are one; the run is "
                    "of another network"
                )
            layer, _, leaf = name.rpartition(".")
            setattr(small.get_submodule(layer), leaf, held[first])


def _tied(model: nn.Module) -> list[list[str]]:
    """Names of each tensor in the state dict, where it has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return [found for found in names.values() if len(found) > 1]


@torch.no_grad()
def _probe(small: nn.Module, config: RunConfig, path: Path) -> None:
    """Run the network once: what shapes cannot tell, such as a selection out of range."""
    try:
        output = small(config.example())
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BayespareError(
            f"{path}: the network does not run on inputs of shape {config.inputs} ({reason})"
        ) from error
    if output.numel() != config.outputs:
        raise BayespareError(
            f"{path}: the network gives {output.numel()} outputs, config.json says {config.outputs}"
        )


def check_finished(folder: Path) -> None:
    """Refuse a folder whose run was stopped before it had a network to give.

    Raises:
        BayespareError: With how to go on.
    """
    begun = (folder / "checkpoint").is_dir()
    if (folder / MODEL).is_file() or ((folder / "metrics.json").is_file() and not begun):
        return  # what is missing there is damage, and said by whoever needs it
    if not (folder / "config.json").is_file():
        if not begun:
            raise BayespareError(f"{folder}: holds no run (no config.json)")
        raise BayespareError(
            f"{folder}: the run is not finished (no {MODEL}); it was begun in Python: go on with "
            f"the same call and folder={str(folder)!r}"
        )
    raise BayespareError(
        f"{folder}: the run is not finished (no {MODEL}); if it was stopped, go on with: bayespare "
        f"{_begun_by(folder)} resume={folder}"
    )


def _begun_by(folder: Path) -> str:
    """The verb that began the run in a folder."""
    with suppress(BayespareError, AttributeError):
        method = read_json(folder / "config.json").get("method")
        return method if method in ("reduce", "prune") else "fit"
    return "fit"


def _point_folder(folder: Path, point: str) -> Path:
    at = folder / "frontier" / point
    if Path(point).name != point or not at.is_dir():
        known = sorted(entry.name for entry in (folder / "frontier").glob("*") if entry.is_dir())
        raise BayespareError(
            f"{folder}: the frontier has no network {point!r}{did_you_mean(point, known)}"
        )
    return at


@contextmanager
def _in_file(path: Path) -> Iterator[None]:
    """Let an error that does not say so itself name the file it came from."""
    try:
        yield
    except BayespareError as error:
        if str(path) in str(error):
            raise
        raise BayespareError(f"{path}: {error}") from error
