"""Answers in a folder of each test's own."""

import pytest
from annotation_place import Place, records, write


@pytest.fixture
def place(tmp_path):
    found = Place(tmp_path / "answers.jsonl")
    write(found.path, records())
    yield found
    found.close()
