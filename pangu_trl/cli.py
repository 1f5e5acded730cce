"""The `pangu-trl` command line; each command is a module of `pangu_trl.commands`."""

import argparse
import os
import sys
from collections.abc import Sequence

from pangu_trl.commands import (
    average,
    best_of_n,
    check_data,
    convert,
    evaluate,
    evaluate_reward,
    plan,
    publish,
    sample,
    score,
    score_sft,
    train_tokenizer,
)

COMMANDS = {
    "train-tokenizer": train_tokenizer,
    "check-data": check_data,
    "convert": convert,
    "sample": sample,
    "score": score,
    "evaluate": evaluate,
    "best-of-n": best_of_n,
    "score-sft": score_sft,
    "evaluate-reward": evaluate_reward,
    "average": average,
    "publish": publish,
    "plan": plan,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The words after `pangu-trl`; those of the process if None.

    Returns:
        0, or what the command says, as `check-data` does with 1 after faults; 2 after an error that the user can mend,
        which is printed in one line; 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # A console that has no such character is no reason to fail, least of all after the work.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = _build_parser().parse_args(argv)
    try:
        return COMMANDS[args.command].run(args) or 0
    except BrokenPipeError:
        # Whoever read the figures has seen enough, as `head` does; results lie in files by then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        # Some libraries explain themselves over several lines.
        print(f"pangu-trl {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"pangu-trl {args.command}: interrupted", file=sys.stderr)
        return 130


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pangu-trl", description="RLHF for causal language models, step by step.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.SUMMARY
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        module.add_options(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
