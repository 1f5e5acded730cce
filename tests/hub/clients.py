"""Processes that are clients of the local hub: one that has pangu_trl, one in which it cannot be imported.

They are separate processes because huggingface_hub reads its environment once, when it is imported, and the tests'
own process is offline.
"""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

Client = Callable[..., Any]


@contextmanager
def client_process(environment: dict[str, str], without_pangu_trl: bool) -> Iterator[Client]:
    """Starts a process; `client(function, *args)` calls a function of an importable module there.

    Args:
        environment: Environment variables to add to the process's own.
        without_pangu_trl: Whether `import pangu_trl` fails there as if it were not installed.
    """
    pool = ProcessPoolExecutor(1, get_context("spawn"), _hide_pangu_trl if without_pangu_trl else None)
    try:
        with patch.dict(os.environ, environment):
            # The pool starts its process with the first call.
            pool.submit(os.getpid).result()
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()
    finally:
        pool.shutdown()


class _PanguTrlIsNotInstalled:
    """First in `sys.meta_path`: no other finder is asked for pangu_trl."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "pangu_trl":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _hide_pangu_trl() -> None:
    sys.meta_path.insert(0, _PanguTrlIsNotInstalled)
