"""Makes the modules of both demos importable, as they are for the run.py beside them."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
# `run` is that of the first; the others have names of their own.
FOLDERS = [str(RECIPES / "demo"), str(RECIPES / "demo_real")]


@pytest.fixture(scope="session")
def demo_module() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of the demos by name."""
    sys.path[:0] = FOLDERS
    yield importlib.import_module
    for folder in FOLDERS:
        sys.path.remove(folder)
