"""A hub in memory and two client processes of it."""

import pytest
from clients import client_process
from local_hub import serve


@pytest.fixture(scope="session")
def hub():
    with serve() as hub:
        yield hub


@pytest.fixture(scope="session")
def author(hub, tmp_path_factory):
    """Calls functions in a process that has pangu_trl and talks to the local hub."""
    environment = hub.client_environment(tmp_path_factory.mktemp("author"))
    with client_process(environment, without_pangu_trl=False) as call:
        yield call


@pytest.fixture(scope="session")
def reader(hub, tmp_path_factory):
    """Calls functions in a process that cannot import pangu_trl and talks to the local hub."""
    environment = hub.client_environment(tmp_path_factory.mktemp("reader"))
    with client_process(environment, without_pangu_trl=True) as call:
        yield call
