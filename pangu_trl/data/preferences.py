"""What the rankings of a set say together: sizes, ties, contradictions between records, and a bias for length."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Preferences:
    """Collects canonical rankings, as numbers and not as texts."""

    def __init__(self) -> None:
        self.answers_per_prompt: Counter[int] = Counter()
        self.num_pairs = self.num_tied_pairs = self.num_all_tied = 0
        self.num_longer_better = self.num_shorter_better = 0
        # Per ranking its prompt and the number of its answers; per answer its hash and its place, the best ones' 0.
        self._prompts, self._sizes = array("Q"), array("I")
        self._answers, self._levels = array("Q"), array("I")

    def add(
        self, prompt_hash: int, answer_hashes: Sequence[int], scores: Sequence[float], lengths: Sequence[int]
    ) -> None:
        """Takes one ranking: hashes of prompt and answers, and scores and lengths of the answers."""
        self.answers_per_prompt[len(scores)] += 1
        self.num_all_tied += len(set(scores)) == 1
        for one in range(len(scores)):
            for other in range(one):
                self.num_pairs += 1
                if scores[one] == scores[other]:
                    self.num_tied_pairs += 1
                    continue
                better, worse = (one, other) if scores[one] > scores[other] else (other, one)
                self.num_longer_better += lengths[better] > lengths[worse]
                self.num_shorter_better += lengths[better] < lengths[worse]
        level = {score: place for place, score in enumerate(sorted(set(scores), reverse=True))}
        self._prompts.append(prompt_hash)
        self._sizes.append(len(scores))
        self._answers.extend(answer_hashes)
        self._levels.extend(level[score] for score in scores)

    def count_conflicts(self) -> tuple[int, int]:
        """Prompts with two answers that records order both ways, and prompts whose order goes round over three or more.

        Each record alone is an order; only several records of one prompt can disagree.
        """
        prompts = np.frombuffer(self._prompts, dtype=np.uint64)
        if not len(prompts):
            return 0, 0
        starts = np.concatenate([[0], np.cumsum(np.frombuffer(self._sizes, dtype=np.uint32), dtype=np.int64)])
        order = np.argsort(prompts, kind="stable")
        ends = np.flatnonzero(np.append(prompts[order][1:] != prompts[order][:-1], True)) + 1
        num_contradictory = num_cyclic = 0
        for first, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
            if end - first < 2:
                continue
            edges: dict[int, set[int]] = {}
            for row in order[first:end]:
                self._add_edges(edges, int(starts[row]), int(starts[row + 1]))
            contradictory = {node for node in edges for target in edges[node] if node in edges[target]}
            components = _strongly_connected(edges)
            num_contradictory += bool(contradictory)
            num_cyclic += any(len(nodes) > 2 and not contradictory & set(nodes) for nodes in components)
        return num_contradictory, num_cyclic

    def _add_edges(self, edges: dict[int, set[int]], start: int, end: int) -> None:
        by_level: dict[int, list[int]] = {}
        for index in range(start, end):
            by_level.setdefault(self._levels[index], []).append(self._answers[index])
        levels = [by_level[level] for level in sorted(by_level)]
        for level in levels:
            for answer in level:
                edges.setdefault(answer, set())
        for place, better in enumerate(levels):
            for worse in levels[place + 1 :]:
                for answer in better:
                    edges[answer].update(worse)

    def figures(self) -> dict[str, Any]:
        """Everything that was found, by name."""
        contradictory, cyclic = self.count_conflicts()
        unequal = self.num_longer_better + self.num_shorter_better
        return {
            "answers_per_prompt": {str(size): count for size, count in sorted(self.answers_per_prompt.items())},
            "pairs": self.num_pairs,
            "tied_pairs": self.num_tied_pairs,
            "rankings_all_tied": self.num_all_tied,
            "prompts_with_contradictory_rankings": contradictory,
            "prompts_with_cyclic_rankings": cyclic,
            "longer_answer_is_better": self.num_longer_better / unequal if unequal else None,
            "pairs_of_unequal_length": unequal,
        }


def _strongly_connected(edges: Mapping[int, set[int]]) -> list[list[int]]:
    """The strongly connected components of a graph (Kosaraju), without recursion."""
    finished: list[int] = []
    seen: set[int] = set()
    for root in edges:
        stack = [] if root in seen else [(root, iter(edges[root]))]
        seen.add(root)
        while stack:
            node, following = stack[-1]
            child = next((item for item in following if item not in seen), None)
            if child is None:
                finished.append(node)
                stack.pop()
            else:
                seen.add(child)
                stack.append((child, iter(edges[child])))
    reverse: dict[int, list[int]] = {node: [] for node in edges}
    for node, targets in edges.items():
        for target in targets:
            reverse[target].append(node)
    components = []
    seen = set()
    for root in reversed(finished):
        if root in seen:
            continue
        component, waiting = [], [root]
        seen.add(root)
        while waiting:
            node = waiting.pop()
            component.append(node)
            fresh = [item for item in reverse[node] if item not in seen]
            seen.update(fresh)
            waiting += fresh
        components.append(component)
    return components
