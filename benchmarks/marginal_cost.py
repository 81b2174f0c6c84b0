"""Cost of marginal-likelihood training, in epochs of plain Adam.

    python benchmarks/marginal_cost.py net=digits|lenet [rounds=5] [examples=1500] [out=path.json]
    python benchmarks/marginal_cost.py net=lenet examples=20000 samples=2000 rivals=AsdlEF,AsdlGGN

``digits``: MLP 64-128-10 on the digits bundled with scikit-learn, all of them. ``lenet``: the
LeNet of the SpaM paper on so many images of Fashion-MNIST (``BAYESPARE_DATA`` names the folder).
Batch 128, Adam at 1e-3, one thread. Every job is run in turn, round after round: a new network is
trained with the prior's pull and an update after every or every fifth epoch (curvature over all of
these examples, a thousand at a time, then the closed form of the precisions or five fixed-point
steps on them). With ``samples`` ours is measured on so many of them, drawn anew, as the default of
``spam`` is.
Figures are medians of CPU seconds per epoch, and their ratio to plain Adam's; the log evidence per
example that the last update of a job came to is of the last round.

Beside ours runs ``marglik_training`` of laplace-torch (0.3) where it is installed, on the same list
of batches and the same priors, with its ten steps of Adam on them: a precision per weight with a
diagonal, per layer with Kronecker factors. Slow back ends are run once. Jobs that are in the file
already are not run again.
"""

import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from records import write
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bayespare import data, nets
from bayespare.bayes.curvature import curvature, wired
from bayespare.bayes.likelihood import likelihood_for
from bayespare.bayes.marginal import Decay, Laplace, Prior, learn
from bayespare.measure import load_average

BATCH = 128
SLOW = 60.0
"""CPU seconds after which a job is not repeated."""

Job = Callable[[], Callable[[], float] | None]
"""A training; what it gives back says the log evidence per example at its end."""

LENET = "lenet:act=relu,pool=max,kernel=3"

BACKENDS = ("AsdlGGN", "AsdlEF", "BackPackGGN", "BackPackEF", "CurvlinopsGGN", "CurvlinopsEF")


@dataclass(frozen=True)
class Loader:
    """Batches in a new order every time; laplace-torch asks a loader for its data set."""

    dataset: tuple[tuple[Tensor, Tensor], ...]
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Loader":
        """Of two tensors."""
        return cls(tuple(zip(x, y, strict=True)), x, y)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(len(self.x)).split(BATCH):
            yield self.x[index], self.y[index]

    def __len__(self) -> int:
        return -(-len(self.x) // BATCH)


def main() -> None:
    """Run what is missing, write after every job."""
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    net, rounds = keys.get("net", "digits"), int(keys.get("rounds", 5))
    samples = int(keys["samples"]) if "samples" in keys else None
    backends = keys["rivals"].split(",") if "rivals" in keys else BACKENDS
    stem = net if samples is None else f"{net}-sampled"
    out = Path(keys.get("out", f"benchmarks/results/cost/{stem}.json"))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    make, loader = digits() if net == "digits" else lenet(int(keys.get("examples", 1500)))
    jobs = all_jobs(make, loader, 10 if net == "digits" else 5, samples, backends)
    record: dict[str, Any] = {"net": net, "examples": len(loader.x), "batch": BATCH, "threads": 1}
    record |= {"samples": samples or len(loader.x)}
    record |= {"torch": torch.__version__, "peer": peer_version()}
    record |= {"seconds": {}, "evidence": {}, "failed": {}}
    if out.exists():
        record |= json.loads(out.read_text())
    seconds: dict[str, list[float]] = record["seconds"]
    jobs["plain"][1]()  # warms up what all share
    for number in range(rounds):
        for name, (epochs, job) in jobs.items():
            spent = seconds.get(name, [])
            enough = len(spent) > number or (spent and spent[0] * epochs > SLOW)
            if enough or name in record["failed"]:
                continue
            torch.manual_seed(number)
            began = time.process_time()
            try:
                done = job()
                if not spent and time.process_time() - began < 1:
                    began = time.process_time()  # the first was to warm up
                    done = job()
            except Exception as error:  # a back end that cannot do this network says so
                record["failed"][name] = f"{type(error).__name__}: {error}".splitlines()[0]
                write(out, record)
                continue
            spent.append((time.process_time() - began) / epochs)
            seconds[name] = spent
            if done is not None:
                record["evidence"][name] = done()
            record["load_average"] = load_average()
            write(out, record)
            print(f"{name:45} {spent[-1]:.4f} s an epoch", flush=True)
    write(out, record)
    report(record)


def digits() -> tuple[Callable[[], nn.Module], Loader]:
    """The network of the card's small comparison and its data."""
    x, y = load_digits(return_X_y=True)
    loader = Loader.of(torch.tensor(x / 16).float()[:1347], torch.tensor(y)[:1347])
    return lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)), loader


def lenet(examples: int) -> tuple[Callable[[], nn.Module], Loader]:
    """The paper's LeNet and so many images."""
    train = data.load(str(Path(os.environ["BAYESPARE_DATA"]) / "fashion-mnist")).train
    loader = Loader.of(train.x[:examples], train.y[:examples])
    # Plain containers, as two of the back ends ask for.
    return lambda: nn.Sequential(*nets.build(LENET, inputs=(1, 28, 28), outputs=10)), loader


def all_jobs(
    make: Callable[[], nn.Module],
    loader: Loader,
    epochs: int,
    samples: int | None,
    backends: Sequence[str],
) -> dict[str, tuple[int, Job]]:
    """Epochs and the training of so many, by name; what is slow last."""
    jobs: dict[str, tuple[int, Job]] = {"plain": (epochs, partial(plain, make, loader, epochs))}
    slow: dict[str, tuple[int, Job]] = {}
    for structure in ("diag", "kfac"):
        for every in (1, 5):
            for kind in ("ggn-mc", "ggn", "ef"):
                job = partial(ours, make, loader, epochs, structure, kind, every, samples)
                jobs[f"ours {structure} {kind} every {every}"] = (epochs, job)
            for backend in backends:
                there, spent = (slow, every) if "Curvlinops" in backend else (jobs, epochs)
                theirs = partial(peer, make, loader, spent, structure, backend, every)
                there[f"laplace-torch {structure} {backend} every {every}"] = (spent, theirs)
    return jobs | slow


def plain(make: Callable[[], nn.Module], loader: Loader, epochs: int) -> None:
    """Adam."""
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def ours(
    make: Callable[[], nn.Module],
    loader: Loader,
    epochs: int,
    structure: str,
    kind: str,
    every: int,
    samples: int | None,
) -> Callable[[], float]:
    """Adam with the prior's pull, precisions learnt after every so many epochs."""
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    parameters = dict(model.named_parameters())
    prior = Prior(parameters, "parameter" if structure == "diag" else "layer")
    decay = Decay(prior, parameters, 1 / len(loader.x))
    wiring = wired(model, loader.x)
    options = {"structure": structure, "kind": kind, "wiring": wiring}
    likelihood = likelihood_for("classification")
    for epoch in range(1, epochs + 1):
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            decay.add()
            optimizer.step()
        if epoch % every == 0:
            # The sum does not depend on the batch, so an update takes larger ones.
            some = torch.randperm(len(loader.x))[:samples].split(1000)
            slices = [(loader.x[rows], loader.y[rows]) for rows in some]
            found = curvature(model, likelihood, slices, **options)
            found = found.scaled(len(loader.x) / found.examples)
            learn(prior, Laplace(parameters, found), steps=5)
            decay = Decay(prior, parameters, 1 / len(loader.x))

    def evidence() -> float:
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(loader.x), loader.y, reduction="sum")
        posterior = Laplace(parameters, found, -float(loss))
        return float(posterior.log_evidence(prior).detach()) / len(loader.x)

    return evidence


def peer(
    make: Callable[[], nn.Module],
    loader: Loader,
    epochs: int,
    structure: str,
    backend: str,
    every: int,
) -> Callable[[], float]:
    """laplace-torch's own training."""
    import laplace
    from laplace import curvature
    from laplace.marglik_training import marglik_training

    module = {"A": curvature.asdl, "B": curvature.backpack, "C": curvature.curvlinops}[backend[0]]
    assert laplace
    *_, margliks, _ = marglik_training(
        make(),
        loader,
        "classification",
        "diag" if structure == "diag" else "kron",
        backend=getattr(module, backend),
        optimizer_kwargs={"lr": 1e-3},
        prior_structure="diag" if structure == "diag" else "layerwise",
        n_epochs=epochs,
        marglik_frequency=every,
    )
    return lambda: -margliks[-1] / len(loader.x)


def peer_version() -> str:
    """Of laplace-torch."""
    from importlib import metadata

    try:
        return "laplace-torch " + metadata.version("laplace-torch")
    except metadata.PackageNotFoundError:
        return "laplace-torch is not installed: its rows are missing"


def report(record: dict[str, Any]) -> None:
    """Medians, in milliseconds and in plain epochs."""
    print(f"{record['net']}, {record['examples']} examples; {record['peer']}")
    middle = {name: statistics.median(times) for name, times in record["seconds"].items()}
    for name, value in middle.items():
        evidence = record["evidence"].get(name, float("nan"))
        times = f"{1e3 * value:9.1f} ms {value / middle['plain']:7.2f}x"
        print(f"{name:45} {times} evidence {evidence:.3f}")
    for name, why in record["failed"].items():
        print(f"{name:45} {why}")


if __name__ == "__main__":
    main()
