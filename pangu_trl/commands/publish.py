"""`pangu-trl publish`: a saved folder on the Hub."""

import argparse
from typing import TYPE_CHECKING

from pangu_trl.runs.counts import counted
from pangu_trl.runs.folders import STAGES

from .options import note

if TYPE_CHECKING:
    from pangu_trl.hub import Publication

SUMMARY = "publish a saved model, adapter, reward model or tokenizer on the Hub"
EXAMPLE = "pangu-trl publish runs/ppo user/name --private --dry-run"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="what a recipe or save_pretrained wrote; it is not changed")
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository on the Hub, created if it does not exist")
    parser.add_argument("--private", action="store_true", help="only its owner may see the repository")
    parser.add_argument(
        "--revision", metavar="BRANCH", help="branch to write to, created if it does not exist (default: main)"
    )
    parser.add_argument(
        "--with-code",
        action="store_true",
        help="send GPTPangu's code along, so that the repository loads with trust_remote_code where pangu_trl is "
        "not installed",
    )
    parser.add_argument(
        "--base-model",
        metavar="USER/NAME",
        help="Hub id of the model that training started from; takes the place of the local path in an adapter",
    )
    parser.add_argument(
        "--stage",
        choices=tuple(STAGES),
        help="last training stage, for a new model card (default: as the folder shows)",
    )
    parser.add_argument("--license", help="license identifier for a new model card, e.g. apache-2.0 (default: none)")
    parser.add_argument(
        "--include",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="further files to publish, as 'images/*' (* stops at a /, ** does not); without it only weights, "
        "configurations, tokenizer, cards and license go",
    )
    parser.add_argument(
        "--public-path",
        nargs="+",
        default=[],
        metavar="PATH",
        help="absolute paths that files may name, with what is below them; without it they are refused as private",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be published and what would be deleted on the Hub, and change nothing",
    )


def run(args: argparse.Namespace) -> None:
    from pangu_trl.hub import prepare, publish

    publication = prepare(
        args.folder,
        args.repo_id,
        with_code=args.with_code,
        base_model=args.base_model,
        stage=args.stage,
        license=args.license,
        include=args.include,
        public_paths=args.public_path,
    )
    if publication.left_out:
        note(args, f"left out: {', '.join(publication.left_out)}; add what others need with --include")
    if publication.replaced_form:
        note(args, "README.md in the folder is a form that nobody filled in; a new card takes its place")
    if args.dry_run:
        _print_plan(args, publication)
        return
    published = publish(publication, private=args.private, revision=args.revision)
    if published.kept_card:
        note(args, "the repository's own README.md was kept")
    if published.deleted:
        note(args, f"deleted weights of an earlier version: {', '.join(published.deleted)}")
    card = " with a new model card" if publication.has_new_card and not published.kept_card else ""
    print(f"{args.repo_id}: published {counted(len(published.files), 'file')}{card}, {published.url}")


def _print_plan(args: argparse.Namespace, publication: "Publication") -> None:
    from pangu_trl.hub import plan

    print(f"{args.repo_id}: would publish the {publication.kind} as")
    print("\n".join(f"  {name}" for name in sorted(publication.files)))
    try:
        change = plan(publication, private=args.private, revision=args.revision)
    except OSError as error:
        note(args, f"what would be deleted is not known, since the Hub did not answer: {' '.join(str(error).split())}")
    else:
        print("would create the repository" if change.creates_repo else "would change the repository that exists")
        if change.deleted:
            print("would delete there, as weights of an earlier version")
            print("\n".join(f"  {name}" for name in change.deleted))
        if change.kept_card:
            print("would keep its README.md")
    if publication.has_new_card:
        print(f"README.md:\n{publication.files['README.md'].decode()}")
