"""Makes transformers' own test modules importable. Without them, as in plain `make test`, nothing here is collected.

`make test-transformers` says in TRANSFORMERS_SOURCE which source tree to take them from: the unpacked source
distribution of the installed version, or a full checkout. The distribution holds the modules directly under tests/, but
not the folders below: there the generation and export tests are missing, and what imports them finds an empty class.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = os.environ.get("TRANSFORMERS_SOURCE")
collect_ignore_glob = [] if SOURCE else ["test_*.py"]

STAND_INS = {
    "tests.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "tests.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    # Settings that every configuration must keep, for ConfigTester.
    "tests.utils.test_configuration_utils": {
        "config_common_kwargs": {
            "architectures": ["GPTPanguForCausalLM"],
            "chunk_size_feed_forward": 3,
            "dtype": "float16",
            "id2label": {0: "好评"},
            "label2id": {"好评": 0},
            "output_attentions": True,
            "output_hidden_states": True,
            "problem_type": "regression",
            "return_dict": False,
        }
    },
}


def provide_tests_package(source: Path) -> None:
    """Makes `tests` the package of transformers' tests, completed by stand-ins for the modules that it lacks."""
    for name in ("__init__.py", "test_modeling_common.py"):
        if not (source / "tests" / name).is_file():
            raise pytest.UsageError(
                f"TRANSFORMERS_SOURCE={source} must be a source tree of transformers, but has no tests/{name}; "
                "`make test-transformers` prepares one"
            )
    sys.path.insert(0, str(source))
    for name, content in STAND_INS.items():
        if not (source / name.replace(".", "/")).with_suffix(".py").is_file():
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__dict__.update(content)


if SOURCE:
    provide_tests_package(Path(SOURCE).resolve())
