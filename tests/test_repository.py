"""Guards on the repository itself: settings parse, documents name what exists, imports point one way."""

import ast
import re
import runpy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import pangu_trl
from pangu_trl import cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *ROOT.glob("README*.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "data_cards").glob("*.md")),
]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
# The room that each name of the library's root comes from.
PUBLIC_NAMES = {
    name: room
    for room, name in re.findall(
        r"^from \.(\w+)\S* import (\w+)", (ROOT / "pangu_trl" / "__init__.pyi").read_text("utf-8"), flags=re.M
    )
}
# What is not in the library, and no room of it imports.
OUTSIDE = {"recipes", "benchmarks", "tests"}
# Which rooms of the library each may import besides itself; cli and recipes may import all.
BELOW_STAGES = {"answers", "runs", "models", "data", "gptpangu"}
MAY_IMPORT = {
    "gptpangu": set(),
    "data": {"gptpangu"},
    "models": {"data", "gptpangu"},
    "runs": {"models", "data", "gptpangu"},
    "answers": {"runs", "models", "data", "gptpangu"},
    "reward": BELOW_STAGES,
    "ppo": BELOW_STAGES,
    "hub": BELOW_STAGES,
    "annotation": BELOW_STAGES,
    # The plan reads the options of every stage, with their defaults.
    "planning": BELOW_STAGES | {"reward", "ppo"},
    "commands": BELOW_STAGES | {"reward", "ppo", "hub", "annotation", "planning"},
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_every_setting_of_a_recipe_is_an_option_of_its_script(path, tmp_path, monkeypatch):
    # recipes/<model>/<stage>.yaml, or recipes/<model>/<stage>/<method>.yaml.
    stage = path.stem if path.parent.parent == ROOT / "recipes" else path.parent.name
    script = ROOT / "recipes" / f"{stage}.py"
    recipe = runpy.run_path(str(script), run_name="not main")
    seen = []

    def stop_after_parsing(*dataclass_types):
        argv = ["--config", str(path), "--output_dir", str(tmp_path), "--train_data", "x.jsonl"]
        argv += ["--reward_model", "x"] if stage in ("ppo", "grpo") else []
        seen.append(parse_options(*dataclass_types, argv=argv))
        raise InterruptedError

    parse_options = recipe["parse_options"]
    monkeypatch.setitem(recipe["main"].__globals__, "parse_options", stop_after_parsing)
    # A recipe names no option that transformers or TRL calls deprecated.
    with warnings.catch_warnings(), pytest.raises(InterruptedError):
        warnings.simplefilter("error", FutureWarning)
        recipe["main"]()
    settings = yaml.safe_load(path.read_text("utf-8"))
    parsed = {name: value for options in seen[0] for name, value in vars(options).items()}
    assert settings.keys() <= parsed.keys()


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_accelerate_config_is_one(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    text = path.read_text("utf-8")
    assert text.startswith("# ")
    config = load_config_from_file(str(path))
    # The tests and the demo run the ones for CPU as they are; the others say what was run of them.
    assert config.use_cpu is (path.stem.split("_")[-1] == "cpu")
    assert config.use_cpu or "not yet run on" in text.lower()
    assert config.num_processes % config.num_machines == 0
    words = ["--config_file", str(path), "--machine_rank", "0", "--main_process_ip", "localhost", "x.py"]
    # What the launcher itself makes of the file, down to the options of DeepSpeed and FSDP.
    arguments = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    assert arguments.use_deepspeed is (config.distributed_type == "DEEPSPEED")
    assert arguments.use_fsdp is (config.distributed_type == "FSDP")
    for option, value in {**config.deepspeed_config, **config.fsdp_config}.items():
        assert getattr(arguments, option) == value, option


@pytest.mark.parametrize("name", ["README.md", "README_zh.md", "docs/demo-real.md"])
def test_commands_to_try_in_a_clone_write_where_git_does_not_look(name):
    text = (ROOT / name).read_text("utf-8").replace("\\\n", "")
    commands = re.findall(r"^    pangu-trl (?:sample|score|evaluate-reward|best-of-n|report) .*", text, flags=re.M)
    outputs = [output for command in commands for output in re.findall(r"--output (\S+)", command)]
    assert len(outputs) >= 3
    assert [output for output in outputs if not output.startswith("runs/")] == []
    assert "/runs/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_paths_and_commands_in_documents_exist(path):
    text = path.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in link:
            assert (path.parent / link).exists(), link
    for name in re.findall(r"\b((?:recipes|accelerate_configs|pangu_trl|docs|tests)/[\w./-]*\w)", text):
        assert (ROOT / name).exists(), name
    assert set(re.findall(r"pangu-trl ([a-z][a-z-]+)", text)) <= set(cli.COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, flags=re.M)) <= targets


def test_hosted_ci_and_forms_are_valid_and_call_targets_that_there_are():
    targets = set(re.findall(r"^([a-z%-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.M))
    steps = []
    for path in (ROOT / ".github").rglob("*.yaml"):
        content = yaml.safe_load(path.read_text("utf-8"))
        steps += [step for job in content.get("jobs", {}).values() for step in job["steps"]]
        assert "jobs" in content or [part["id"] for part in content["body"]]
    called = [target for step in steps for target in re.findall(r"make (\S+)", step.get("run", ""))]
    assert {"test", "test-newest", "test-wheel"} <= set(called)
    assert {re.sub(r"-\$.*", "-%", target) for target in called} <= targets


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["version"], citation["license"]) == (pangu_trl.__version__, "Apache-2.0")


def modules_imported_by(source: str, package: str) -> Iterator[str]:
    """Full names of all that a module imports, wherever in it and in whichever way it says so.

    Args:
        source: Its text.
        package: The package that it is in, which relative imports start from.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            stem = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    """The room of the library that a module is in, or a name of the library's root comes from; None for all else."""
    top, _, rest = module.partition(".")
    if top in OUTSIDE:
        return top
    if top != "pangu_trl" or not rest:
        return None
    name = rest.partition(".")[0]
    return PUBLIC_NAMES.get(name, name)


@pytest.mark.parametrize(
    ("line", "rooms"),
    [
        ("import torch, json", []),
        ("import pangu_trl", []),
        ("import pangu_trl.ppo.losses", ["ppo"]),
        ("import pangu_trl.ppo.losses as x, pangu_trl.data", ["ppo", "data"]),
        ("from pangu_trl.ppo.losses import policy_loss", ["ppo"]),
        ("from pangu_trl import ppo, data", ["ppo", "data"]),
        ("from pangu_trl import PPOConfig", ["ppo"]),
        ("from .losses import pairwise", ["reward"]),
        ("from . import losses", ["reward"]),
        ("from ..ppo import losses", ["ppo"]),
        ("from .. import ppo", ["ppo"]),
        ("from recipes.demo import run", ["recipes"]),
        ("def later():\n    from ..ppo.losses import policy_loss", ["ppo"]),
    ],
)
def test_every_way_to_import_is_seen(line, rooms):
    found = [room_of(module) for module in modules_imported_by(line, "pangu_trl.reward")]
    assert [room for room in found if room is not None] == rooms


def test_imports_point_one_way():
    library = ROOT / "pangu_trl"
    assert {path.name for path in library.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py"}
    for path in library.rglob("*.py"):
        *folders, _ = path.relative_to(library).parts
        if not folders:
            continue
        room = folders[0]
        modules = list(modules_imported_by(path.read_text("utf-8"), ".".join(["pangu_trl", *folders])))
        rooms = {found for found in map(room_of, modules) if found is not None}
        assert rooms <= MAY_IMPORT[room] | {room}, f"{path} imports {sorted(rooms - MAY_IMPORT[room] - {room})}"


def test_files_that_travel_to_the_hub_import_only_their_siblings():
    for path in (ROOT / "pangu_trl" / "gptpangu").glob("*_gptpangu.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2, path
                names = [] if node.level else [node.module]
            assert not any(name.split(".")[0] == "pangu_trl" for name in names), path


def test_test_modules_have_names_of_their_own():
    """pytest imports them by name alone, and refuses the second of one name."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}


def test_no_private_paths_or_unsafe_loading():
    files = [path for folder in ("pangu_trl", "recipes") for path in (ROOT / folder).rglob("*.py")]
    for path in files:
        text = path.read_text("utf-8")
        assert not re.search(
            r"(?<!`)trust_remote_code=True|weights_only=False|\.cuda\(\)|[\"'(]/(home|root|tmp|work)/", text
        ), path
