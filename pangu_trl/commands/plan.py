"""`pangu-trl plan`: memory and traffic of a run before it is started."""

import argparse

from pangu_trl.runs.folders import STAGES
from pangu_trl.runs.shipped import accelerate_config, recipe_config

from .options import add_json, positive_int, print_json

SUMMARY = "say what memory a recipe needs on each device, whether it fits, and what its ranks send"
EXAMPLE = "pangu-trl plan --config my_ppo.yaml --stage ppo --accelerate zero3 --gpus 8"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml", help="recipe of a stage")
    parser.add_argument(
        "--stage",
        choices=tuple(STAGES),
        help="stage of the recipe (default: what the file or its folder is named after)",
    )
    parser.add_argument(
        "--accelerate",
        required=True,
        metavar="NAME|FILE",
        help="accelerate configuration: a file, or the name of one that comes along, such as zero3",
    )
    parser.add_argument("--gpus", type=positive_int, help="devices in all (default: the configuration's num_processes)")
    parser.add_argument(
        "--gpu-memory", type=positive_int, default=80, metavar="GIB", help="memory of a device (default: %(default)s)"
    )
    parser.add_argument(
        "--model",
        help="folder, hub id, or one of tiny, pangu-350m, pangu-2.6b and pangu-13b (default: the recipe's, or the size "
        "that its folder is named after)",
    )
    parser.add_argument(
        "--answers", type=positive_int, default=4, help="answers to a prompt, K, in a reward model's data (default: 4)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from pangu_trl.planning.launch import read_launch
    from pangu_trl.planning.settings import read_settings

    launch = read_launch(accelerate_config(args.accelerate), args.gpus)
    settings = read_settings(recipe_config(args.config), args.model, args.stage)
    # What counts on the model itself loads torch: after the files were read.
    from pangu_trl.planning.memory import GIB, Plan
    from pangu_trl.planning.models import load_config
    from pangu_trl.planning.report import describe, figures

    plan = Plan(settings, launch, load_config(settings.model), args.answers)
    if args.json:
        print_json(figures(plan, args.gpu_memory * GIB))
    else:
        print(describe(plan, args.gpu_memory * GIB))
