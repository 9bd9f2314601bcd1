"""Pictures of the feed's latencies, for people."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from tests.bench.feeding import Scale
from tests.bench.measuring import percentile


def draw(scales: Sequence[Scale], folder: Path, stem: str) -> list[Path]:
    """Write both pictures beside the JSON and return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_distribution(scales, folder / f"{stem}-distribution.png"), _growth(scales, folder / f"{stem}-growth.png")]


def _distribution(scales: Sequence[Scale], path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for scale in scales:
        count = len(scale.latencies)
        axes.plot(
            scale.latencies, [100 * (at + 1) / count for at in range(count)], label=f"{scale.verifiers:,} verifiers"
        )
    axes.set(
        xscale="log",
        xlabel="milliseconds from the call to a verifier's denial",
        ylabel="% of verifiers that deny",
        title="Revoke to denied: each verifier, each round",
    )
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _growth(scales: Sequence[Scale], path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    counts = [scale.verifiers for scale in scales]
    axes.plot(counts, [percentile(scale.latencies, 50) for scale in scales], "o-", label="denied, p50")
    axes.plot(counts, [percentile(scale.latencies, 99) for scale in scales], "o-", label="denied, p99")
    axes.plot(counts, [max(scale.complete) for scale in scales], "o-", label="complete, slowest round")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="verifiers (broker and verifiers share two cores)",
        ylabel="milliseconds",
        title="Revoke against the number of verifiers",
    )
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
