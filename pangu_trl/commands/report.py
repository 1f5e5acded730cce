"""`pangu-trl report`: a page on one run, or one that compares several."""

import argparse
import time
from pathlib import Path

from .options import note, positive_int

SUMMARY = "write a page on a run, or one that compares several: figures, curves, samples, settings"
EXAMPLE = "pangu-trl report runs/ppo --lang zh"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output_dir of a run, which may still be going on")
    parser.add_argument(
        "--lang", choices=("en", "zh"), default="en", help="language of the page (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="the page, which is replaced if it exists (default: _report.html in the run; needed for several runs)",
    )
    parser.add_argument(
        "--watch",
        type=positive_int,
        nargs="?",
        const=10,
        metavar="SECONDS",
        help="write the page anew every so many seconds until the runs have ended; a browser follows (default: 10)",
    )


def run(args: argparse.Namespace) -> None:
    from pangu_trl.runs.report.page import PAGE_FILE, write_page
    from pangu_trl.runs.report.reading import read_run

    if args.output is None and len(args.runs) > 1:
        raise ValueError("a page on several runs belongs to none of them: name it with --output FILE.html")
    path = Path(args.runs[0]) / PAGE_FILE if args.output is None else args.output
    if path.suffix not in (".html", ".htm"):
        raise ValueError(f"{path}: the page must end in .html")
    while True:
        runs = [read_run(folder) for folder in args.runs]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(path, runs, args.lang, args.watch)
        if args.watch is None or all(run.finished for run in runs):
            break
        note(args, f"{path}: step {', '.join(str(run.step) for run in runs)}")
        time.sleep(args.watch)
    print(f"{path}: written; open it in a browser")
