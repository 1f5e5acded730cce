"""The `pangu-trl` command line; each command is a module of `pangu_trl.commands`.

argparse, not click or typer: the stages hand on two hundred options of TRL's dataclasses that are not ours to declare,
either library takes longer to import than the whole of this does, and what they would add (completion, the nearest
name) is a few lines here.
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pangu_trl import __version__
from pangu_trl.data.near_names import did_you_mean
from pangu_trl.runs.folders import STAGES

# In the order of a run, and what one needs beside it. The stages share a module.
COMMANDS = (
    *("init", "check-data", *STAGES, "report"),
    *("sample", "score", "evaluate", "best-of-n", "score-sft", "evaluate-reward", "chat"),
    *("annotate", "agreement", "export-annotations", "import-annotations"),
    *("plan", "merge", "average", "publish", "convert", "train-tokenizer", "env", "completion"),
)


class _Parser(argparse.ArgumentParser):
    """ArgumentParser that says where help is, and in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}. See {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The words after `pangu-trl`; those of the process if None.

    Returns:
        0, or what the command says, as `check-data` does with 1 after faults, and a stage with the exit status of its
        recipe; 2 after an error that the user can mend, which is printed in one line; 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # A console that has no such character is no reason to fail, least of all after the work.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        # What is still in the buffer may find nobody who reads it.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read the figures has seen enough, as `head` does; results lie in files by then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(words: list[str]) -> int:
    place = next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))
    if place == len(words) or place > 0:
        # Help or the version, or what is wrong.
        build_parser().parse_args(words[:place])
    name, words = words[place], words[place + 1 :]
    if name not in COMMANDS:
        build_parser().error(f"there is no command {name}{did_you_mean(name, COMMANDS)}")
    command = _command(name)
    takes_more = hasattr(command, "add_recipe_options")
    parser = _Parser(prog=f"pangu-trl {name}", **_texts(command))
    _add_options(parser, command, with_recipe={"-h", "--help"} & set(words))
    if not takes_more:
        _refuse_unknown(parser, words)
    args, rest = parser.parse_known_args(words)
    args.command, args.build_parser = name, build_parser
    if rest and not takes_more:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return (command.run(args, rest) if takes_more else command.run(args)) or 0
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        if getattr(args, "debug", os.environ.get("PANGU_TRL_DEBUG")):
            raise
        # Some libraries explain themselves over several lines.
        print(f"pangu-trl {name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"pangu-trl {name}: interrupted", file=sys.stderr)
        return 130


def build_parser(whole: bool = False) -> argparse.ArgumentParser:
    """The parser of the command line without the options of its commands, or with all of them, for completion."""
    parser = _Parser(
        prog="pangu-trl",
        description="RLHF for causal language models, step by step.",
        epilog="example: pangu-trl init my-run --stage sft --model MODEL --data train.jsonl",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pangu-trl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = _command(name)
        subparser = commands.add_parser(name, help=command.SUMMARY, **_texts(command))
        if whole:
            _add_options(subparser, command, with_recipe=True)
    return parser


def _command(name: str) -> Any:
    """The module or object of a command: SUMMARY, EXAMPLE, add_options and run."""
    if name in STAGES:
        return importlib.import_module("pangu_trl.commands.stages").COMMANDS[name]
    return importlib.import_module(f"pangu_trl.commands.{name.replace('-', '_')}")


def _texts(command: Any) -> dict[str, Any]:
    summary = command.SUMMARY
    return {
        "description": f"{summary[0].upper()}{summary[1:]}.",
        "epilog": f"example: {command.EXAMPLE}",
        # The other formatter breaks lines at hyphens, and nobody could copy the example.
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def _add_options(parser: argparse.ArgumentParser, command: Any, with_recipe: object) -> None:
    command.add_options(parser)
    if with_recipe and hasattr(command, "add_recipe_options"):
        command.add_recipe_options(parser)
    if not hasattr(command, "add_recipe_options"):
        # Transformers has an option of this name; for a stage PANGU_TRL_DEBUG=1 does the same.
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _refuse_unknown(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Names the first option that there is not, before argparse asks for those that are missing."""
    known = ["--help", *re.findall(r"--[a-z][a-z-]*", parser.format_usage())]
    for word in words:
        option = word.split("=")[0]
        if option == "--":
            return
        if option.startswith("--") and option not in known:
            parser.error(f"there is no option {option}{did_you_mean(option, known)}")
