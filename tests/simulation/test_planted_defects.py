"""What the simulation is worth: each of these defects, planted in the real source, is found by some validator."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.planted import DEFECTS, MOST_SEEDS, Defect, planted
from tests.simulation.scenario import run

HERE = Path(__file__).parents[2]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_planted_defect_is_found(defect: Defect) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation.planted", defect.name],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout, f"none of {MOST_SEEDS} seeds finds it: strengthen the simulation, or show that it is harmless"
    assert json.loads(done.stdout)["violations"] != []


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_what_a_defect_changes_is_there_once_and_the_source_still_compiles(defect: Defect) -> None:
    spec = importlib.util.find_spec(defect.module)
    assert spec is not None
    assert spec.origin is not None
    compile(planted(defect, Path(spec.origin).read_text("utf-8")), defect.module, "exec")


@pytest.mark.parametrize("seed", sorted({seed for defect in DEFECTS for seed in defect.seeds}))
def test_without_the_defect_the_same_seeds_break_nothing(seed: int) -> None:
    assert run(seed).violations == []
