"""What every method is to the rest: a config, what it holds, and what it is asked to do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from bayespare.bayes.likelihood import Likelihood
from bayespare.data import Dataset
from bayespare.structure.plan import Plan
from bayespare.training.criterion import Foretold
from bayespare.training.schedule import Schedule
from bayespare.training.shrink import remaining_parameters


class Config(BaseModel):
    """Settings of a method: frozen, typed, refusing unknown keys, round-tripping through JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def idle(self) -> dict[str, str]:
        """Settings that have no part in what the others ask for, and why; to set one is refused."""
        return {}


class Method(nn.Module):
    """A way to fit a posterior over a network and to say which units belong in it.

    A method is a module that holds the parameters of its posterior; the network's own parameters
    are the posterior means. Who keeps their own loop writes::

        method.attach(network, plan, examples=len(train))
        loss = nll + method.penalty()
        ...
        method.update(optimizer)

    Attributes:
        settings_class: The type of its config.
        offers: What it can decide about, by the name it has as ``unit=``.
        removes: Whether it removes anything by itself; what never does cannot meet a budget.
        authors_run: Epochs and batch of its authors, for ``settings=faithful``.
        at_mode: Whether it trains without noise and knows the spread afterwards.
        foretells: Whether it says what it expects of a removal, so that it can be checked.
        separates: Whether epochs drive the odds of all units apart; else those that the data say
            nothing of stay at their prior odds, or single weights are what is judged.
        most_batch: Examples per step up to which the data are taken whole; None: a batch as the
            size of the data asks.
        config: The settings it was built from.
        whole: The plan of the network as it was.
        keep: Group name to a boolean per unit of ``whole``: which are still there.
        plan: The plan of the network as it is now.
        generator: Source of all noise.
        tempering: Weight of the KL against the likelihood; 1 is the untempered ELBO.
        price: Nats added to the KL for every parameter expected to stay; a budget sets it.
        worth: Factor of the price by layer, where a budget asks for less work than for fewer
            parameters; None: one everywhere.
        haste: Factor of the rate of what decides, where a run is short.
        progress: Share of the exploration that is done, in [0, 1].
        held: Whether gates are held open, for a start in which nothing is in question.
        decided: Whether :meth:`decide` has been called.
        relaxed: In evaluation, use inclusion probabilities instead of decisions.
        looking: In evaluation, do not silence what would go if it were decided now.
        foretold: What the removals since it was last cleared were expected to do.
    """

    settings_class: ClassVar[type[Config]] = Config
    offers: ClassVar[tuple[str, ...]] = ("unit",)
    removes: ClassVar[bool] = True
    authors_run: ClassVar[tuple[int, int]] = (1200, 1024)
    most_batch: ClassVar[int | None] = None
    at_mode: ClassVar[bool] = False
    foretells: ClassVar[bool] = False
    separates: bool = True
    config: Config
    whole: Plan
    keep: dict[str, Tensor]
    plan: Plan
    generator: torch.Generator | None = None
    tempering: float = 1.0
    price: float = 0.0
    worth: Mapping[str, float] | None = None
    haste: float = 1.0
    held: bool = False
    progress: float = 1.0
    decided: bool = False
    relaxed: bool = False
    looking: bool = False
    foretold: Foretold | None = None

    @abstractmethod
    def attach(
        self,
        network: nn.Module,
        plan: Plan,
        *,
        examples: int,
        generator: torch.Generator | None = None,
    ) -> None:
        """Put the posterior into a network, in place.

        Args:
            network: The network; its stock layers are replaced by variational ones.
            plan: What can be removed from it.
            examples: N, the number of training examples: scales the KL, once.
            generator: Source of all noise.
        """

    @abstractmethod
    def draw_within(self, blocks: Sequence[nn.Module]) -> None:
        """Touch the weights of these parts of the network only while each of them runs.

        Their weights are elsewhere otherwise. Each is called as a module.

        Raises:
            UnsupportedStructureError: If the posterior itself would be there all the time.
        """

    def start(self, plan: Plan) -> None:
        """Begin the account of what is still there."""
        self.whole = self.plan = plan
        self.keep = plan.all_units

    def narrow(self, stayed: Mapping[str, Tensor]) -> None:
        """Note that of the units that were there only those in ``stayed`` are left."""
        self.plan = self.plan.restrict(stayed)
        for name, line in stayed.items():
            there = self.keep[name].nonzero().squeeze(1)
            self.keep[name][there[~line]] = False

    def schedule(
        self, epochs: int, steps: int, examples: int, tempering: float | Literal["auto"]
    ) -> Schedule:
        """How to spend the time of so many epochs, of so many steps each, on so many examples."""
        return Schedule.of(epochs, steps, examples, tempering)

    def observe(self, likelihood: Likelihood, data: Dataset, held: Dataset | None = None) -> None:
        """Look at training data after an epoch; nothing, unless a method needs to.

        Args:
            likelihood: Of the task.
            data: Training data on the network's device.
            held: Validation data, for what an overfitted network hides; None: there are none.
        """

    def polish(self, log_likelihood: Callable[[], Tensor]) -> None:
        """Improve the log-odds before it is decided; nothing, unless a method knows how.

        Args:
            log_likelihood: Of the training data under the network as it is now, nats, scalar.
        """

    def begin_epoch(self) -> None:
        """Forget what no checkpoint holds, so that a resumed run takes the same steps."""

    @abstractmethod
    def penalty(self) -> Tensor:
        """What to add to the mean loss of a batch: tempering * KL / N, nats per example."""

    @abstractmethod
    def update(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
        """Do what is due after a step or an epoch: cut units whose removal has settled.

        The network, the posterior and the optimiser's moments shrink together.

        Returns:
            Which units of the plan as it was stay, for each group that lost some.
        """

    @abstractmethod
    def decide(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
        """Cut every unit with negative log-odds; what stays is no longer in question.

        Returns:
            As :meth:`update`.
        """

    @abstractmethod
    def settle(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Take every unit that is there as decided; nothing is cut."""

    @abstractmethod
    def remove(
        self, keep: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, Tensor]:
        """Cut the units that are not in ``keep``, whatever their log-odds; never a whole group.

        Returns:
            As :meth:`update`.
        """

    def warnings(self) -> list[str]:
        """What its last look at the posterior found that a user has to know; often nothing."""
        return []

    def diagnostics(self) -> dict[str, Any]:
        """What else it knows of its posterior before the decision, JSON-ready; often nothing."""
        return {}

    @property
    def by_weight(self) -> bool:
        """Whether single weights are judged, and a size is how many are not zero."""
        return False

    def judged_weights(self, network: nn.Module, plan: Plan) -> frozenset[str]:
        """Names of the parameters of which it judges single entries; often none.

        Args:
            network: As the user gave it; the method is not attached to it.
            plan: Of it.
        """
        return frozenset()

    def foresee(self, network: nn.Module, x: Tensor) -> str:
        """Refuse, before any work, a network that it could not look at later.

        Args:
            network: As the user gave it; the method is not attached to it.
            x: A few inputs.

        Returns:
            What looking will take, for the user; often nothing.

        Raises:
            BayespareError: If it cannot.
        """
        return ""

    def remaining(self, network: nn.Module, stay: Mapping[str, Tensor]) -> int:
        """Parameters of the network when only these units stay.

        Those that it holds physically; of a method that judges single weights, those that are not
        zero.
        """
        return remaining_parameters(network, self.plan, stay)

    @abstractmethod
    def parameter_groups(self, network: nn.Module, batch: int) -> list[dict[str, Any]]:
        """Optimiser groups over the network's and the posterior's parameters.

        Args:
            network: The network the method is attached to.
            batch: Examples per step.

        Returns:
            Groups with their rates as ``lr``, and again as ``base_lr`` for schedules; one may have
            no parameters.
        """

    @abstractmethod
    def means(self) -> dict[str, Tensor]:
        """Posterior mean of every parameter and buffer of the network as it is now, by name."""

    @abstractmethod
    def take(self, means: Mapping[str, Tensor]) -> None:
        """Make these the posterior means, of every parameter of the network as it is now."""

    @abstractmethod
    def standard_deviations(self) -> dict[str, Tensor]:
        """Posterior standard deviation by parameter name of the network as it is now."""

    @abstractmethod
    def log_odds(self) -> dict[str, Tensor]:
        """Log posterior odds that each unit belongs in the network, nats, per group."""
