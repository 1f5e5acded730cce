"""`pangu-trl completion`: what a shell needs to complete commands and options."""

import argparse

SUMMARY = "print the completion of commands and options for a shell"
EXAMPLE = "pangu-trl completion bash > ~/.local/share/bash-completion/completions/pangu-trl"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="whose completion")


def run(args: argparse.Namespace) -> None:
    import shtab

    # Of the whole command line, which the command line alone knows.
    print(shtab.complete(args.build_parser(whole=True), shell=args.shell))
