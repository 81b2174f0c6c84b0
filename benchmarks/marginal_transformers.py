"""Memory and time of a marginal-likelihood update of transformers.

    python benchmarks/marginal_transformers.py [examples=2] [tokens=32] [out=path.json]

Networks as large as DistilBERT and GPT-2, with random weights made from their configurations
(transformers has to be installed; nothing is downloaded): a classifier on each, and GPT-2's
language model, whose head is tied to its embedding. An update is what ``spam`` does: the diagonal
curvature of so many examples by sampled labels, then a precision for every parameter in closed
form. ``peak_gb`` is of the whole process, which each network has for itself; ``state_gb`` is what
has to be held: parameters, log precisions and curvature. Networks that are in the file already are
not run again.
"""

import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from records import write
from torch import Tensor, nn

from bayespare.bayes.curvature import curvature, estimate
from bayespare.bayes.marginal import Laplace, Prior, learn
from bayespare.measure import load_average

NETS = ("distilbert", "gpt2", "gpt2-lm")


def main() -> None:
    """Each network in a process of its own."""
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    out = Path(keys.get("out", "benchmarks/results/cost/transformers.json"))
    examples, tokens = int(keys.get("examples", 2)), int(keys.get("tokens", 32))
    record: dict[str, Any] = {"examples": examples, "tokens": tokens, "threads": 1, "nets": {}}
    record |= {"torch": torch.__version__, "transformers": transformers.__version__}
    if out.exists():
        record |= json.loads(out.read_text())
    for name in NETS:
        if name in record["nets"]:
            continue
        # A process forked from this one would inherit its peak.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            record["nets"][name] = pool.apply(measured, (name, examples, tokens))
        print(name, json.dumps(record["nets"][name], indent=1), flush=True)
        record["load_average"] = load_average()
        write(out, record)


def network(name: str) -> nn.Module:
    """A classifier or a language model with random weights."""
    torch.manual_seed(0)
    if name == "distilbert":
        return transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig())
    config = transformers.GPT2Config(pad_token_id=0, use_cache=False)
    if name == "gpt2":
        return transformers.GPT2ForSequenceClassification(config)
    return transformers.GPT2LMHeadModel(config)


def batches(model: nn.Module, examples: int, tokens: int) -> list[tuple[Tensor, Tensor]]:
    """Random token ids, two examples at a time; the next token or one of two classes to predict."""
    random = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    x = torch.randint(1, vocabulary, (examples, tokens), generator=random)
    y = torch.randint(2, (examples,), generator=random)
    if isinstance(model, transformers.GPT2LMHeadModel):
        y = x.roll(-1, 1)
    return list(zip(x.split(2), y.split(2), strict=True))


def update(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> tuple[Prior, Laplace]:
    """One marginal-likelihood update, a precision for every parameter."""
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    found = Laplace(parameters, curvature(model, "classification", data, generator=generator))
    prior = Prior(parameters, "parameter")
    learn(prior, found)
    return prior, found


def measured(name: str, examples: int, tokens: int) -> dict[str, Any]:
    """Peak memory and seconds of an update."""
    torch.set_num_threads(1)
    model = network(name)
    parameters = sum(p.numel() for p in model.parameters())
    data = batches(model, examples, tokens)
    started, before = time.process_time(), peak()
    needs = estimate(model, data[0][0])
    wiring = time.process_time() - started
    prior, found = update(model, data)
    seconds = time.process_time() - started - wiring
    logs = [log.detach() for log in prior.logs]
    return {
        "parameters": parameters,
        "blocks": len(found.blocks),
        "tensors": len(list(model.parameters())),
        "state_gb": 3 * 4 * parameters / 1e9,
        "estimate_gb": needs.total / 1e9,
        "peak_gb": peak() / 1e9,
        "peak_before_gb": before / 1e9,
        "wiring_seconds": wiring,
        "update_seconds": seconds,
        "learnt": sum(int((log != 0).sum()) for log in logs) / parameters,
    }


def peak() -> int:
    """Largest resident set of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
