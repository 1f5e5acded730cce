"""`pangu-trl chat`: a talk in the terminal with one model, or with two that answer the same."""

import argparse
import sys
from typing import TYPE_CHECKING

from .options import add_sampling, note

if TYPE_CHECKING:
    from pangu_trl.answers.chatting import Talk

SUMMARY = "talk to a model in the terminal, or to two that answer the same"
EXAMPLE = "pangu-trl chat runs/sft runs/ppo --temperature 0.8"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="folder or hub id of a causal language model or an adapter; a second one answers below the first",
    )
    add_sampling(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the answers (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    if len(args.models) > 2:
        raise ValueError(f"chat takes one model or two; got {len(args.models)}")
    from pangu_trl.answers.chatting import Talk
    from pangu_trl.answers.sampling import SamplingConfig, load_language_model

    config = SamplingConfig(args.max_new_tokens, args.temperature, args.top_p, args.top_k)
    talks = {name: Talk(*load_language_model(name), config, args.seed) for name in args.models}
    for name, talk in talks.items():
        if not talk.is_chat:
            note(args, f"{name} has no chat template: it continues each line by itself")
    note(args, "/new begins anew, /quit or Ctrl-D ends")
    while (line := _read_line()) is not None:
        if line == "/new":
            for talk in talks.values():
                talk.messages.clear()
        elif line:
            for name, talk in talks.items():
                _answer(args, name if len(talks) > 1 else None, talk, line)


def _read_line() -> str | None:
    """The next line without white space around it; None at the end."""
    if sys.stdin.isatty():
        # For editing and history of the line.
        import readline  # noqa: F401
    try:
        line = input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    return None if line == "/quit" else line


def _answer(args: argparse.Namespace, name: str | None, talk: "Talk", line: str) -> None:
    if name is not None:
        print(f"[{name}]")
    try:
        talk.answer(line, lambda text: print(text, end="", flush=True))
    except ValueError as error:
        note(args, f"{error}; /new begins anew")
    print(flush=True)
