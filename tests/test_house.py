"""What holds for the package as a whole: who imports whom, what imports and help load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "sklearn", "dask", "matplotlib", "pandas", "zarr")
ROOT = Path(__file__).parents[1]


def loaded_by(code: str) -> set[str]:
    begin, end = (
        "import sys; sys.argv = ['stratascope', '--help']\ntry:\n",
        "except SystemExit:\n    pass\nprint(*sys.modules, file=sys.stderr)",
    )
    report = f"{begin}    {code}\n{end}"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("code", ["import stratascope", "from stratascope.cli import main; main()"], ids=["import", "--help"])
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert not loaded_by(code) & set(HEAVY)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["store", "probe", "analysis", "report", "datasets", "extract"])
def test_no_unit_loads_torch_at_import(unit: str) -> None:
    assert not loaded_by(f"import stratascope.{unit}") & {"torch", "transformers"}


@pytest.mark.slow
def test_no_commands_help_loads_what_only_its_work_needs() -> None:
    """All of them in one process; options come from the signatures of functions, which need NumPy, pandas and zarr."""
    code = (
        "from stratascope.cli import all_commands, main; [main([c.name, '--help'], standalone_mode=False) for c in all_commands().values()]"
    )
    assert not loaded_by(code) & (set(HEAVY) - {"pandas", "zarr"})


def test_who_may_import_whom() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed in this environment")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_public_names_are_reachable() -> None:
    import stratascope

    for name in stratascope.__all__:
        assert getattr(stratascope, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = stratascope.nothing
