"""An answers file, and what serves it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from pangu_trl.annotation.dealing import make_deck
from pangu_trl.annotation.desk import Desk
from pangu_trl.annotation.prompts import AnswersFile
from pangu_trl.annotation.store import Store, store_path

NUM_PROMPTS = 6
NUM_ANSWERS = 4


def records(num_prompts=NUM_PROMPTS, num_answers=NUM_ANSWERS):
    """Prompts whose answers tell their number in the file, `p0-a0` to `p5-a3`, and their source."""
    return [
        {
            "prompt": f"question {row}",
            "responses": [f"p{row}-a{index}" for index in range(num_answers)],
            "model": "the-secret-source",
        }
        for row in range(num_prompts)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@dataclass
class Place:
    """A folder with answers, which desks are opened on one after the other."""

    path: Path
    opened: list[Store] = field(default_factory=list)

    @property
    def store(self):
        return store_path(self.path)

    def open(self, annotators=("ann",), overlap=0.0, order="given", repeats=0.0, attributes=()):
        self.close()
        store = Store(self.store)
        self.opened.append(store)
        file = AnswersFile.load(self.path)
        deck = make_deck(file.rows, overlap, order, store.seed, repeats)
        return Desk(store, file, deck, annotators, attributes)

    def close(self):
        while self.opened:
            self.opened.pop().close()


def shown_answers(state):
    """Numbers in the file of the answers on a page, in the order shown."""
    return [int(parts[0]["text"].rpartition("a")[2]) for parts in state["page"]["answers"]]
