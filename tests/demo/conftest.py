"""Makes the modules of recipes/demo importable, as they are for recipes/demo/run.py beside them."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

DEMO = Path(__file__).parents[2] / "recipes" / "demo"


@pytest.fixture(scope="session")
def demo_module() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of the demo by name."""
    sys.path.insert(0, str(DEMO))
    yield importlib.import_module
    sys.path.remove(str(DEMO))
