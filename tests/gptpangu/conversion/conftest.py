"""Conversions run through the command, as users run them; what they read, and where they write."""

import shutil
from collections.abc import Callable

import pytest

from pangu_trl.cli import main


@pytest.fixture
def published(fixtures, tmp_path):
    """A published checkpoint that a test may spoil."""
    return shutil.copytree(fixtures / "tiny_gptpangu", tmp_path / "published")


@pytest.fixture
def destination(tmp_path):
    """Where nothing may appear."""
    folder = tmp_path / "destination"
    yield folder
    assert not list(tmp_path.glob("destination*"))


@pytest.fixture
def convert(capsys) -> Callable[..., str]:
    """`convert(...words)` runs `pangu-trl convert` and returns what it wrote to stderr."""

    def run(*words: object) -> str:
        capsys.readouterr()
        status = main(["convert", *map(str, words)])
        error = capsys.readouterr().err
        assert status == 0, error
        return error

    return run


@pytest.fixture
def refuse(capsys) -> Callable[..., str]:
    """`refuse(...words)` runs a conversion that has to fail and returns its one-line message."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main(["convert", *map(str, words)]) == 2
        return capsys.readouterr().err

    return run
