"""Every run that docs/results.md quotes, in order; finished ones are skipped, a kill loses one.

    BAYESPARE_DATA=folder python benchmarks/all.py [quick]

The folder holds ``mnist/`` and ``fashion-mnist/`` as IDX files; without it only the bundled data
are run. ``JOBS`` of the environment is how many run at a time (1), one thread each.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

METHODS = ("ss-ig", "ss-gl", "ss-ghs")


def cells(data: Path | None, quick: bool) -> list[list[str]]:
    """Arguments of ``frontier.py`` for every run."""
    rows = [
        ["data=digits", "net=mlp:400,400", f"method={method}", f"seeds={seed}", dense(method)]
        for method in METHODS
        for seed in range(1 if quick else 10)
    ]
    if data is None:
        return rows
    seeds = range(1 if quick else 3)
    mnist, fashion = f"data={data / 'mnist'}", f"data={data / 'fashion-mnist'}"
    for seed in seeds:
        for method in METHODS:
            for source in (mnist, fashion):
                rows.append(
                    [source, "net=mlp:400,400", f"method={method}", f"seeds={seed}", dense(method)]
                )
        rows.append([mnist, "net=lenet300", "method=ss-ig", f"seeds={seed}"])
        small = ["max_params=17774", "name=mnist-within-a-15th", "baseline=false"]
        rows.append([mnist, "net=lenet300", "method=ss-ig", f"seeds={seed}", *small])
        # The size of the best published result, as a budget.
        rows.append(
            [
                mnist,
                "net=lenet5",
                "method=ss-ig",
                f"seeds={seed}",
                "max_params=2781",
                "epochs=40",
                "baseline=false",
                "batch=128",
            ]
        )
    return rows


def dense(method: str) -> str:
    """The dense network of a seed is the same for all methods: the first one trains it."""
    return f"baseline={str(method == METHODS[0]).lower()}"


def run(arguments: list[str]) -> int:
    """Run one cell in a process of its own."""
    script = Path(__file__).with_name("frontier.py")
    log = Path("bench-results")
    log.mkdir(exist_ok=True)
    name = "_".join(a.split("=")[1].replace("/", "-").strip("-") for a in arguments)
    with (log / f"{name}.log").open("w") as file:
        return subprocess.run([sys.executable, str(script), *arguments], stderr=file).returncode


def main() -> None:
    """Run all cells; exit with 1 if one failed."""
    folder = os.environ.get("BAYESPARE_DATA")
    rows = cells(Path(folder) if folder else None, "quick" in sys.argv)
    with ThreadPoolExecutor(int(os.environ.get("JOBS", "1"))) as pool:
        codes = list(pool.map(run, rows))
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
