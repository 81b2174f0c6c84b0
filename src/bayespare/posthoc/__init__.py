"""Post-hoc reduction: rounds of removal from any trained network, stopped by measured evidence."""

from bayespare.posthoc.rounds import Size, run_rounds, tune, up_to_summit
from bayespare.posthoc.run import reduce
from bayespare.posthoc.settings import ReduceOptions

__all__ = ["ReduceOptions", "Size", "reduce", "run_rounds", "tune", "up_to_summit"]
