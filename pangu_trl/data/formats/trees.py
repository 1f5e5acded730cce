"""OpenAssistant's trees of messages, as `oasst_trees.jsonl` nests them or as the Hub's rows list them."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from ..records import OnFault, RecordError
from .format import Format, Message, Row, list_of, number_of, object_of, refusal, text_of

ROLES = {"prompter": "user", "assistant": "assistant"}


def _gather(rows: Iterable[Row], kind: str, on_fault: OnFault) -> Iterator[Row]:
    """Takes the records of a kind out of each tree.

    A ranking for each message with two or more ranked answers; a prompt for each message of a user; and one
    demonstration a tree, the thread that takes the best-ranked answer and the first question each time.
    """
    for identifier, group in groupby(rows, key=lambda row: row[1].get("message_tree_id")):
        # Rows without an identifier are trees of their own.
        for members in [[row] for row in group] if identifier is None else [list(group)]:
            try:
                threads = [
                    (where, thread)
                    for where, tree in _trees(members)
                    # The place goes with the tree: an error deep in it is told by its row.
                    for thread in _threads(object_of(tree, "prompt", f"{where}: as oasst"), kind, where)
                ]
            except RecordError as error:
                on_fault(error)
                continue
            yield from threads


def _trees(members: list[Row]) -> list[tuple[str, Any]]:
    nested = [(where, row["prompt"]) for where, row in members if row.get("prompt") is not None]
    if nested:
        return nested
    if members[0][1].get("message_tree_id") is None:
        raise RecordError(
            f"{members[0][0]}: as oasst the row must have 'prompt', the root of a tree, or 'message_tree_id'."
        )
    return [(members[0][0], _nest(members))]


def _nest(members: list[Row]) -> dict[str, Any]:
    """Puts the rows of a tree below their parents."""
    nodes: dict[Any, dict[str, Any]] = {row.get("message_id"): dict(row, replies=[]) for _, row in members}
    roots = []
    for where, row in members:
        parent = row.get("parent_id")
        if parent is None:
            roots.append(row.get("message_id"))
        elif parent not in nodes:
            raise RecordError(
                f"{where}: as oasst 'parent_id' must be a message of the same tree, whose rows follow one another; "
                f"there is no {parent!r}."
            )
        else:
            nodes[parent]["replies"].append(nodes[row.get("message_id")])
    if len(roots) != 1:
        raise RecordError(f"{members[0][0]}: as oasst a tree must have one row without 'parent_id'; got {len(roots)}.")
    return nodes[roots[0]]


def _threads(root: Mapping[str, Any], kind: str, where: str) -> Iterator[dict[str, Any]]:
    place = f"{where}: as oasst"
    if kind == "demonstration":
        thread, node = [_message(root, place)], root
        while replies := _replies(node, place):
            node = replies[0]
            thread.append(_message(node, place))
        # A last question that nobody has answered teaches nothing; a first one is told below.
        yield {"thread": thread[:-1] if thread[-1]["role"] == "user" and len(thread) > 1 else thread}
        return
    pending = [([_message(root, place)], root)]
    while pending:
        thread, node = pending.pop(0)
        replies = _replies(node, place)
        if thread[-1]["role"] == "user":
            ranked = [reply for reply in replies if reply.get("rank") is not None]
            if kind == "prompt":
                yield {"thread": thread}
            elif len(ranked) > 1:
                yield {"thread": thread, "replies": ranked}
        pending += [([*thread, _message(reply, place)], reply) for reply in replies]


def _replies(node: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """The answers to a message, best first, those without a rank last; deleted ones are not there."""
    replies = node.get("replies") or []
    replies = [
        object_of(reply, "replies", where) for reply in replies if not object_of(reply, "replies", where).get("deleted")
    ]
    return sorted(
        replies, key=lambda reply: float("inf") if reply.get("rank") is None else number_of(reply, "rank", where)
    )


def _message(node: Mapping[str, Any], where: str) -> Message:
    role = text_of(node, "role", where)
    if role not in ROLES:
        raise refusal(where, "role", f"one of {', '.join(ROLES)}", role)
    return {"role": ROLES[role], "content": text_of(node, "text", where)}


def _from_oasst(row: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """{"prompt": {"text", "role", "replies": [{"text", "role", "rank": 0 is best, "replies"}, ...]}}."""
    thread = list_of(row, "thread", where)
    if kind == "prompt":
        return {"prompt": thread}
    if kind == "demonstration":
        if len(thread) < 2:
            raise RecordError(f"{where} the tree must have an answer to its question; it has none. Remove it.")
        return {"prompt": thread[:1], "completion": thread[1:]}
    replies = row["replies"]
    return {
        "prompt": thread,
        "responses": [[_message(reply, where)] for reply in replies],
        "scores": [-number_of(reply, "rank", where) for reply in replies],
    }


OASST = Format(
    ("message_tree_id", "prompt", "thread", "replies"), ("demonstration", "ranking", "prompt"), _from_oasst, _gather
)
