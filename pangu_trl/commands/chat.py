"""`pangu-trl chat`: a talk in the terminal with one model, or with two that answer the same."""

import argparse
import sys
from typing import TYPE_CHECKING

from pangu_trl.runs.counts import counted

from .options import add_sampling, note

if TYPE_CHECKING:
    from pangu_trl.answers.chatting import Talk

SUMMARY = "talk to a model in the terminal, or to two that answer the same"
EXAMPLE = "pangu-trl chat runs/sft runs/ppo --temperature 0.8"


KEYS = "/new begins anew, Ctrl-C stops an answer, /quit or Ctrl-D ends"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{parser.description} {KEYS}. Ctrl-C at the prompt ends, too."
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="folder or hub id of a causal language model or an adapter; a second one answers below the first",
    )
    add_sampling(parser, max_new_tokens=256)
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
    note(args, KEYS)
    if hasattr(sys.stdin, "reconfigure") and sys.stdin.errors != "surrogateescape":
        # Bytes that are no text are told of, and the talk goes on.
        sys.stdin.reconfigure(errors="surrogateescape")
    while (line := _read_line()) is not None:
        if not _is_unicode(line):
            encoding = (sys.stdin.encoding or "utf-8").upper()
            note(
                args, f"the terminal did not send {encoding}, so the line was left out; set its encoding to {encoding}"
            )
        elif line == "/new":
            for talk in talks.values():
                talk.messages.clear()
        elif line:
            for name, talk in talks.items():
                _answer(args, name if len(talks) > 1 else None, talk, line)


def _read_line() -> str | None:
    """The next line without white space around it, with lone surrogates for bytes that are none; None at the end."""
    if sys.stdin.isatty():
        # For editing and history of the line.
        import readline  # noqa: F401
    try:
        line = input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    return None if line == "/quit" else line


def _is_unicode(line: str) -> bool:
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _answer(args: argparse.Namespace, name: str | None, talk: "Talk", line: str) -> None:
    from pangu_trl.answers.chatting import End

    if name is not None:
        print(f"[{name}]")
    try:
        # Lines of a file have no prompt to come back to: there Ctrl-C ends the whole.
        text, end = talk.answer(line, lambda part: print(part, end="", flush=True), sys.stdin.isatty())
    except ValueError as error:
        note(args, f"{error}; /new begins anew")
        print(flush=True)
        return
    print(flush=True)
    if end == End.LONGEST:
        note(args, f"cut off after {counted(args.max_new_tokens, 'token')}; a greater --max-new-tokens gives more")
    elif end == End.NO_ROOM:
        note(args, "cut off, as the talk fills the positions of the model; /new begins anew")
    elif end == End.STOPPED:
        kept = "; what came stays in the talk" if text else " before the first word; nothing is kept"
        note(args, f"stopped{kept if talk.is_chat else ''}")
