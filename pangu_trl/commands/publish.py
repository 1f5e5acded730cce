"""`pangu-trl publish`: a saved folder on the Hub."""

import argparse

from .options import note

SUMMARY = "publish a saved model, adapter, reward model or tokenizer on the Hub"


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
        choices=("sft", "reward", "ppo"),
        help="last training stage, for a new model card (default: as the folder shows)",
    )
    parser.add_argument("--license", help="license identifier for a new model card, e.g. apache-2.0 (default: none)")
    parser.add_argument(
        "--include",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="further files to publish; without it only weights, configurations, tokenizer, cards and license go",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be published, and upload nothing")


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
    )
    if publication.left_out:
        note(args, f"left out: {', '.join(publication.left_out)}; add what others need with --include")
    if args.dry_run:
        print(f"{args.repo_id}: would publish the {publication.kind} as")
        print("\n".join(f"  {name}" for name in sorted(publication.files)))
        if publication.has_new_card:
            print(f"README.md:\n{publication.files['README.md'].decode()}")
        return
    published = publish(publication, private=args.private, revision=args.revision)
    if published.kept_card:
        note(args, "the repository's own README.md was kept")
    if published.deleted:
        note(args, f"deleted weights of an earlier version: {', '.join(published.deleted)}")
    card = " with a new model card" if publication.has_new_card and not published.kept_card else ""
    print(f"{args.repo_id}: published {len(published.files)} files{card}, {published.url}")
