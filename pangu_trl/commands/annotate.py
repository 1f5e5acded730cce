"""`pangu-trl annotate`: a page on which people rank the answers of a file."""

import argparse
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pangu_trl.runs.counts import counted

from .options import add_batch_size, add_judge_option, add_output, note, refuse_existing

if TYPE_CHECKING:
    from pangu_trl.annotation.address import Address
    from pangu_trl.annotation.dealing import Deck
    from pangu_trl.annotation.prompts import AnswersFile
    from pangu_trl.annotation.store import Store

SUMMARY = "rank the answers of a file on a page of your own"
EXAMPLE = "pangu-trl annotate answers.jsonl --annotator ann"
PORT = 8765


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "answers", metavar="ANSWERS.jsonl", help="file that `pangu-trl sample` wrote, K answers a prompt"
    )
    parser.add_argument(
        "--annotator",
        required=True,
        action="append",
        metavar="NAME",
        help="who ranks; several times for several people, each of whom gets a link of their own",
    )
    add_output(
        parser,
        "RANKINGS.jsonl",
        "written when the page is closed with Ctrl-C: what `pangu-trl export-annotations` writes (default: decisions "
        "are only kept beside the answers)",
        required=False,
    )
    parser.add_argument("--port", type=_port, default=PORT, help="0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 is all of this machine's, for others to come in (default: %(default)s)",
    )
    parser.add_argument(
        "--public-url",
        metavar="URL",
        help="what browsers call the page where a reverse proxy stands between, as https://rank.example.org/ "
        "(default: none stands between)",
    )
    parser.add_argument(
        "--order",
        choices=("given", "random", "active"),
        default="given",
        help="of the prompts; active has those come first whose answers the judges can hardly tell apart (default: "
        "%(default)s)",
    )
    add_judge_option(parser, required=False, several=True)
    add_batch_size(parser)
    parser.add_argument(
        "--overlap",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="share of the prompts that every annotator gets, for `pangu-trl agreement` (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="share of an annotator's prompts that come back unannounced (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, help="of all that is shuffled; kept with the decisions (default: drawn)")
    parser.add_argument(
        "--attributes",
        metavar="FILE.yaml",
        help="scores that may be given to each answer, as `helpful: {en: Helpful, zh: 有帮助, from: 1, to: 5}` "
        "(default: none)",
    )


def run(args: argparse.Namespace) -> None:
    _refuse(args)
    from pangu_trl.annotation.address import Address
    from pangu_trl.annotation.attributes import read_attributes
    from pangu_trl.annotation.desk import Desk
    from pangu_trl.annotation.prompts import AnswersFile
    from pangu_trl.annotation.server import Server, make_app
    from pangu_trl.annotation.store import Store, store_path

    from . import export_annotations

    attributes = () if args.attributes is None else read_attributes(args.attributes)
    address = Address(args.host, args.port, args.public_url)
    file = AnswersFile.load(args.answers)
    with Store(store_path(args.answers), args.seed) as store:
        desk = Desk(store, file, _deck(args, file, store), args.annotator, attributes)
        _tell(args, file, store, desk)
        server = Server(make_app(desk, address, args.annotator), address)
        _greet(args, server.links, address)
        server.run()
        decisions = [kept.decision for kept in store.decisions()]
    ranked = sum(not decision.skipped for decision in decisions)
    print(f"{store.path}: {counted(ranked, 'ranking')}, {counted(len(decisions) - ranked, 'prompt')} skipped")
    if args.output is not None and ranked:
        export_annotations.run(_export(args))
    elif args.output is not None:
        note(args, f"{args.output}: not written, as nothing is ranked yet")


def _refuse(args: argparse.Namespace) -> None:
    """Refuses what the server would fail of, before anything is read."""
    for name in ("starlette", "uvicorn"):
        if find_spec(name) is None:
            raise ValueError(f"the page needs {name}; pip install 'pangu_trl[annotate]'")
    for name in args.annotator:
        if not name.strip() or not name.isprintable() or len(name) > 100:
            raise ValueError(f"--annotator must be a name of up to 100 characters that can be printed; got {name!r}")
    if len(set(args.annotator)) < len(args.annotator):
        raise ValueError("--annotator names somebody twice; name each once")
    if args.order == "active" and not args.judge:
        raise ValueError("--order active needs the model that prompts are chosen for; name it with --judge")
    if args.judge and args.order != "active":
        raise ValueError("--judge is for --order active; give both or neither")
    if args.output is not None:
        if args.output.suffix != ".jsonl":
            raise ValueError(f"{args.output}: rankings are written as JSON lines; give a name that ends in .jsonl")
        for path in (args.output, args.output.with_suffix(".md")):
            refuse_existing(argparse.Namespace(output=path, overwrite=args.overwrite))


def _export(args: argparse.Namespace) -> argparse.Namespace:
    """The options of `pangu-trl export-annotations` that write this output."""
    from . import export_annotations

    parser = argparse.ArgumentParser()
    export_annotations.add_options(parser)
    words = [args.answers, "--output", str(args.output), *(["--overwrite"] if args.overwrite else [])]
    return argparse.Namespace(command=args.command, **vars(parser.parse_args(words)))


def _deck(args: argparse.Namespace, file: "AnswersFile", store: "Store") -> "Deck":
    from pangu_trl.annotation.dealing import make_deck

    indecision = _indecision(args, file) if args.order == "active" else None
    rules = {"order": args.order, "overlap": args.overlap, "repeats": args.repeats}
    before = store.setting("rules")
    if before is not None and before != rules:
        changed = ", ".join(
            f"{name} {before[name]}, now {rules[name]}" for name in rules if before[name] != rules[name]
        )
        note(args, f"dealt with other rules before ({changed}); what was decided holds")
    store.set("rules", rules)
    return make_deck(file.rows, args.overlap, args.order, store.seed, args.repeats, indecision)


def _indecision(args: argparse.Namespace, file: "AnswersFile") -> dict[str, float]:
    """How little the judges can tell the answers of each prompt apart."""
    from pangu_trl.annotation.dealing import indecision
    from pangu_trl.answers.judge import load_judge, score_answers

    by_judge = [
        score_answers(load_judge(judge, args.batch_size, args.judge_form), file.answers) for judge in args.judge
    ]
    return {
        prompt: indecision([scores[row] for scores in by_judge], file.answers.records[row]["responses"])
        for prompt, row in file.rows.items()
    }


def _tell(args: argparse.Namespace, file: "AnswersFile", store: "Store", desk: object) -> None:
    """Says what is not shown, and what changed since the last time."""
    if file.num_single:
        note(args, f"{file.num_single} prompts of {file.path} have a single answer and are not shown")
    if file.num_repeated:
        note(args, f"{file.num_repeated} lines of {file.path} say the same as one before them and are shown with it")
    if store.note_file(file.digest, file.path.name, len(file.rows)) is not None:
        note(args, f"{file.path} is not the file that was open last time")
    if desk.num_of_other_versions:
        note(
            args,
            f"{desk.num_of_other_versions} decisions are on prompts whose answers changed since, or that are gone from "
            f"{file.path}; they are kept in {store.path}, and the prompts as they are now are shown",
        )


def _greet(args: argparse.Namespace, links: dict[str, str], address: "Address") -> None:
    for name, link in links.items():
        print(f"{name}: {link}" if len(links) > 1 else link)
    if not address.is_loopback and not address.is_encrypted:
        note(
            args,
            "warning: names, links and ranks go over the network as they are; put a proxy with HTTPS in front and name "
            "it with --public-url where others listen",
        )
    note(args, "a link is a key: who has it ranks under its name. Ctrl-C ends; nothing is lost by it")
    print(end="", flush=True)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port, from 0 to 65535; got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"must be a share, from 0 to 1; got {text!r}")
    return share
