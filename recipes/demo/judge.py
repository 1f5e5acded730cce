"""The demo's annotator: the sentiment classifier of the package snownlp, a naive Bayes model that nobody here trained.

Loading it takes seconds and 430 MB, so it lives in worker processes that are started at the first call and kept. A
worker is this file run as a script, not a `multiprocessing` process: a forked one could inherit locked threads of
torch, a spawned one would import the whole program again.
"""

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys


def sentiment(prompts: list[str], completions: list[str], **columns) -> list[float]:
    """Judges how favourable each completion is, from 0 (a bad review) to 1 (a good one).

    The completion is judged alone. All answers to one prompt share the opening, so it cannot rank them; it would only
    move their scores towards its own mood, which the model did not write and cannot change.

    Args:
        prompts: Openings; only their number counts.
        completions: What the model wrote after each opening.
        **columns: Other columns of the data set, unused.

    Returns:
        One score per completion. A score depends on its completion only.

    Raises:
        ValueError: prompts and completions differ in number.
        RuntimeError: the classifier's process ended.
    """
    if len(prompts) != len(completions):
        raise ValueError(
            f"sentiment() needs one completion per prompt; got {len(prompts)} prompts and "
            f"{len(completions)} completions. Repeat a prompt that has several."
        )
    workers = _workers()
    try:
        return workers.judge(completions)
    except BaseException:
        # A broken-off exchange leaves answers in the pipes, which the next call would take for its own.
        workers.close()
        _workers.cache_clear()
        raise


def judge_text(text: str) -> float:
    """Probability that a text is favourable, by its distinct words.

    Differs from `SnowNLP(text).sentiments` in two points, both because a policy is optimised against the score:

    * A word counts once. Counted each time, as snownlp does, ten times "喜欢" is 0.999 and the policy learns to
      stammer. On whole reviews both ways agree with the label equally often (85 %).
    * A text without a word that the classifier knows (empty, only stop words, punctuation or gibberish) scores 0.
      snownlp answers about 0.5 there, more than an average sample gets: falling silent would be rewarded.
    """
    model = _classifier()
    words = list(dict.fromkeys(model.handle(text)))
    if not any(_is_known(word, model) for word in words):
        return 0.0
    label, probability = model.classifier.classify(words)
    return probability if label == "pos" else 1.0 - probability


def _is_known(word: str, model) -> bool:
    has_letter = any(character.isalnum() for character in word)
    return has_letter and any(counts.exists(word) for counts in model.classifier.d.values())


@functools.cache
def _classifier():
    from snownlp.sentiment import classifier

    return classifier


class JudgeWorkers:
    """Processes that judge texts in parallel.

    Each reads lists of texts from its standard input and answers with lists of scores, JSON, one list a line.
    """

    def __init__(self, num_workers: int):
        self.processes = [
            # Its own session: Ctrl-C is for the program that waits here, which then ends the workers.
            subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                start_new_session=True,
            )
            for _ in range(num_workers)
        ]

    def judge(self, texts: list[str]) -> list[float]:
        """Scores of the texts, in their order.

        Raises:
            RuntimeError: a worker ended; its own message is on standard error.
        """
        num_workers = len(self.processes)
        scores = [0.0] * len(texts)
        # Dealt out like cards, so that neighbours of similar length do not all meet in one worker.
        shares = [texts[offset::num_workers] for offset in range(num_workers)]
        for process, share in zip(self.processes, shares, strict=True):
            # A worker that has ended is reported below, where it fails to answer.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(share) + "\n")
                process.stdin.flush()
        for offset, process in enumerate(self.processes):
            answer = process.stdout.readline()
            if not answer:
                raise RuntimeError(
                    f"A process that judges sentiment ended with exit code {process.wait()}; see its message above. "
                    "Is snownlp installed? pip install snownlp"
                )
            scores[offset::num_workers] = json.loads(answer)
        return scores

    def close(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.kill()
            process.communicate()


@functools.cache
def _workers() -> JudgeWorkers:
    workers = JudgeWorkers(os.cpu_count() or 1)
    atexit.register(workers.close)
    return workers


def _answer_requests() -> None:
    for line in sys.stdin:
        print(json.dumps([judge_text(text) for text in json.loads(line)]), flush=True)


if __name__ == "__main__":
    _answer_requests()
