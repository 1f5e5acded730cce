"""`pangu-trl init`: a commented YAML file of a stage to start from."""

import argparse
import textwrap
from pathlib import Path
from typing import Any

from pangu_trl.data.near_names import names_file, nearest_path
from pangu_trl.runs.folders import STAGES
from pangu_trl.runs.given_options import read_yaml
from pangu_trl.runs.option_sources import options_of_recipe
from pangu_trl.runs.shipped import shipped

SUMMARY = "write a commented YAML file of a stage to start from"
EXAMPLE = "pangu-trl init my-run --stage ppo --model runs/sft --reward-model runs/reward --data prompts.jsonl"

# The settings of the shipped recipes to start from; those of GPTPangu differ by its size in batches, lengths and rates.
_SIZES = ("generic", "tiny", "pangu-350m", "pangu-2.6b", "pangu-13b")
_WIDTH = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="folder that the file goes to; made if it is not there"
    )
    parser.add_argument("--stage", required=True, choices=tuple(STAGES), help="stage of the recipe")
    parser.add_argument("--model", required=True, help="folder or hub id of the model that the run starts from")
    parser.add_argument("--data", help="training records; without it the file has a place for them")
    parser.add_argument("--eval-data", metavar="DATA", help="held-out records (default: none)")
    parser.add_argument("--reward-model", metavar="MODEL", help="ppo, grpo: judge of the answers")
    parser.add_argument(
        "--size",
        choices=_SIZES,
        default="generic",
        help="whose settings to start from: those for any causal language model, or for a size of GPTPangu "
        "(default: %(default)s)",
    )
    parser.add_argument("--method", choices=("full", "lora"), default="full", help="default: %(default)s")


def run(args: argparse.Namespace) -> None:
    if args.reward_model is not None and args.stage not in ("ppo", "grpo"):
        raise ValueError(f"--reward-model belongs to the stages ppo and grpo; got --stage {args.stage}")
    path = args.folder / f"{args.stage}.yaml"
    if path.exists():
        raise FileExistsError(f"{path}: exists already, and nothing is overwritten; give another folder or remove it")
    for option in ("data", "eval_data", "model", "reward_model"):
        _refuse_missing(option, getattr(args, option))
    recipes = shipped("recipes")
    helps = {option.name: option.help for option in options_of_recipe(recipes / f"{args.stage}.py")}
    settings = read_yaml(recipes / args.size / args.stage / f"{args.method}.yaml")
    told: dict[str, Any] = {"model_name_or_path": args.model, "train_data": args.data, "eval_data": args.eval_data}
    if "reward_model" in helps:
        told["reward_model"] = args.reward_model
    told["output_dir"] = str(args.folder / args.stage)
    if args.eval_data is not None:
        # Once before anything is learnt, so that the end has something to compare with.
        settings = {"eval_strategy": "epoch"} | settings | {"eval_on_start": True}
    else:
        settings = {name: value for name, value in settings.items() if not name.startswith("eval_")}
    args.folder.mkdir(parents=True, exist_ok=True)
    # Made anew or not at all, also where two do it at once.
    with path.open("x", encoding="utf-8") as file:
        file.write(_text(args, told | {name: value for name, value in settings.items() if name not in told}, helps))
    missing = [name for name in ("train_data", "reward_model") if name in told and told[name] is None]
    if missing:
        print(f"{path}: fill in {' and '.join(missing)}, then")
    else:
        print(f"{path}: written. Next:")
    print(f"  pangu-trl {args.stage} --config {path}")


def _refuse_missing(option: str, name: str | None) -> None:
    """Refuses what is plainly a file or folder and is not there, before the stage would fail of it.

    A name with the form of a Hub id may be one, or the folder of a run that is still to come.
    """
    if name is None or "://" in name:
        return
    # A reward function is path/to/file.py:function or package.module:function.
    file, colon, _ = name.rpartition(":")
    path = file if colon else name
    is_meant_so = path.endswith(".py") if colon else names_file(path)
    if is_meant_so and not Path(path).exists() and not Path(name).exists():
        raise FileNotFoundError(
            f"--{option.replace('_', '-')} {name}: there is no such file or folder (looked for "
            f"{Path(path).absolute()}){nearest_path(path)}; nothing is written"
        )


def _text(args: argparse.Namespace, settings: dict[str, Any], helps: dict[str, str]) -> str:
    lines = [
        f"# {STAGES[args.stage][0].upper()}{STAGES[args.stage][1:]}: the settings of recipes/{args.size}/{args.stage}/"
        f"{args.method}.yaml to start from.",
        f"# All options: pangu-trl {args.stage} --help",
    ]
    for name, value in settings.items():
        # The help is written for argparse, to which % means something.
        comment = helps[name].replace("%%", "%")
        lines += ["", *textwrap.wrap(comment, _WIDTH, initial_indent="# ", subsequent_indent="# ")]
        lines.append(f"# {name}:" if value is None else f"{name}: {_yaml(value)}")
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    import yaml

    # In one line, whatever its length; a plain number ends with a line of its own.
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf")).split("\n")[0]
