"""Pictures of the feed's latencies, for people."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from tests.bench.feeding import WANTED, Scale
from tests.bench.measuring import percentile

STYLES = {"light": "-", "light at gRPC": "-.", "sdk": "--"}


def draw(scales: Sequence[Scale], beside: Path) -> list[Path]:
    """Write the pictures beside the JSON and return where they are. What was not measured to the end is left out."""
    whole = [scale for scale in scales if scale.complete]
    if not whole:
        return []
    return [
        _distribution(whole, beside.with_name(f"{beside.stem}-distribution.png")),
        _growth(whole, beside.with_name(f"{beside.stem}-growth.png")),
    ]


def _distribution(scales: Sequence[Scale], path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for scale in scales:
        count = len(scale.latencies)
        shares = [100 * (at + 1) / count for at in range(count)]
        axes.plot(
            scale.latencies, shares, STYLES[scale.players], label=f"{scale.verifiers:,} verifiers, {scale.players}"
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
    for players in sorted({scale.players for scale in scales}):
        ours = sorted((one for one in scales if one.players == players), key=lambda one: one.verifiers)
        counts = [one.verifiers for one in ours]
        for label, values in (
            ("denied, p50", [percentile(one.latencies, 50) for one in ours]),
            ("denied, p99", [percentile(one.latencies, 99) for one in ours]),
            ("complete, median round", [percentile(sorted(one.complete), 50) for one in ours]),
        ):
            axes.plot(counts, values, "o" + STYLES[players], label=f"{label}, {players}")
    for count, (denied, completed) in WANTED.items():
        axes.plot([count, count], [denied, completed], "k_", markersize=14)
    axes.plot([], [], "k_", label="wanted: denied p99, complete")
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
