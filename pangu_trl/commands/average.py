"""`pangu-trl average`: several reward models as one, by the average of their weights."""

import argparse

from .options import add_output, note, refuse_existing

SUMMARY = "average the weights of reward models that were trained from one start"
EXAMPLE = "pangu-trl average runs/reward-1 runs/reward-2 runs/reward-3 --output runs/reward-average"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folders or Hub ids of reward models or adapters")
    add_output(parser, "FOLDER", "gets the model, its tokenizer and its card")


def run(args: argparse.Namespace) -> None:
    refuse_existing(args, is_folder=True)
    from pangu_trl.reward.averaging import average_reward_models

    average_reward_models(args.models, args.output)
    note(args, f"averaged {len(args.models)} reward models; evaluate the average before you use it")
