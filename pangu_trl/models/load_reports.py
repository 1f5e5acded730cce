"""What transformers reports of a model's files but for what is known: a head that is new, or that an adapter brings."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_STATUSES = {"UNEXPECTED", "MISSING", "MISMATCH", "CONVERSION"}
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def reports_of_files(new_head: str | tuple[str, ...] | None) -> Iterator[None]:
    """Leaves out a report that names nothing but a new head and the one whose place it takes.

    What the files lack the caller looks at by itself. Weights that have no place, or another shape, stay reported, in a
    file without codes for colours.

    Args:
        new_head: Start of the names of weights that the files need not hold, or several; None for none.
    """
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        text = _COLOURS.sub("", record.getMessage())
        if "LOAD REPORT" not in text:
            return True
        if not sys.stderr.isatty():
            record.msg, record.args = text, ()
        rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "|" in line]
        told = [row for row in rows if not _STATUSES.isdisjoint(row)]
        known = new_head is not None and all(
            "MISSING" in row and row[0].startswith(new_head) or "UNEXPECTED" in row and row[0].startswith("lm_head")
            for row in told
        )
        return not (told and known)

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
