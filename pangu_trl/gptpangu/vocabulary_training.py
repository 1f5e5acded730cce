"""Training a vocabulary for smaller GPTPangu models: the rules and the first ids of the official one, on other text."""

import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from .tokenization_gptpangu import GPTPanguTokenizer
from .vocabulary_gptpangu import NEWLINE, RESERVED_PIECES, SPACE, VOCABULARY_FILE, refuse_lone_surrogate, spaced_words

_TOO_LARGE = re.compile(r"Vocabulary size too high .* <= (?P<limit>\d+)")
_TOO_SMALL = re.compile(r"Vocabulary size is smaller than required_chars. \d+ vs (?P<limit>\d+)")

# The coverage of the official vocabulary, SentencePiece's default, and the smallest that its trainer takes.
_CHARACTER_COVERAGE, _SMALLEST_COVERAGE = 0.9995, 0.98
# Of a small vocabulary on Chinese text, characters would take nearly all pieces and leave none for words.
_LARGEST_SHARE_OF_CHARACTERS = 0.75
# SentencePiece's own mark for unknown characters; its trainer silently skips lines that hold one.
_TRAINER_UNKNOWN = "\u2585"
# Lines above the default of 4192 bytes would be skipped, silently too.
_LONGEST_LINE_BYTES = 1 << 30


def train_vocabulary(
    texts: Iterable[str], output_dir: str | Path, vocab_size: int, num_threads: int = 2
) -> GPTPanguTokenizer:
    """Trains a vocabulary like the official one on texts, and writes a tokenizer folder over it.

    A SentencePiece unigram model of segmented text, with the normalisation and the first ten pieces of the official
    vocabulary. It differs in one point: characters get a piece of their own, most frequent first, only up to three
    quarters of a small vocabulary (but at least those of 98 % of the text), so that there is room for words. The rarer
    ones become `<unk>`.

    All texts are held in memory and all are used; of a corpus beyond some hundred megabytes, pass a sample. The same
    texts in the same order with the same `num_threads` give the same bytes.

    Args:
        texts: Training texts, at least one with a visible character.
        output_dir: Folder to write, made if needed; it must not hold a tokenizer.
        vocab_size: Number of pieces, the ten reserved ones included.
        num_threads: Threads of the SentencePiece trainer.

    Returns:
        The tokenizer over the new vocabulary, as it would load from `output_dir`.

    Raises:
        FileExistsError: The folder holds a tokenizer.
        TypeError: `texts` is one string, or holds something else than strings.
        ValueError: There is no text, a text is not valid Unicode, or the texts are too few for `vocab_size`.
    """
    folder = Path(output_dir)
    for name in (VOCABULARY_FILE, "tokenizer_config.json", "tokenizer.json"):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists: the folder holds a tokenizer; remove it or take another")
    model = _train_model(_training_lines(texts), vocab_size, num_threads)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / VOCABULARY_FILE
    path.write_bytes(model)
    tokenizer = GPTPanguTokenizer(path, name_or_path=str(folder))
    tokenizer.save_pretrained(folder)
    return tokenizer


def _training_lines(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of strings, got one string; pass [text]")
    lines = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] must be a string, got {type(text).__name__}")
        refuse_lone_surrogate(text, f"texts[{index}]")
        lines.append(spaced_words(text).replace(_TRAINER_UNKNOWN, " "))
    if not any(line.strip(f" {SPACE}{NEWLINE}") for line in lines):
        raise ValueError(f"expected text to train a vocabulary on, got {len(lines)} texts without a visible character")
    return lines


def _train_model(lines: list[str], vocab_size: int, num_threads: int) -> bytes:
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            user_defined_symbols=list(RESERVED_PIECES[3:]),
            character_coverage=_character_coverage(lines, vocab_size),
            max_sentence_length=_LONGEST_LINE_BYTES,
            num_threads=num_threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        # Without the spaces between the words, which are not of the texts.
        size = f"{len(lines)} texts of {sum(len(line) - line.count(' ') for line in lines)} characters"
        if found := _TOO_LARGE.search(str(error)):
            advice = f"give more text or a vocab_size of at most {found['limit']}"
        elif found := _TOO_SMALL.search(str(error)):
            advice = f"the characters alone need a vocab_size of at least {found['limit']}"
        else:
            advice = str(error)
        raise ValueError(f"cannot train a vocabulary of {vocab_size} pieces on {size}: {advice}") from error
    return model.getvalue()


def _character_coverage(lines: list[str], vocab_size: int) -> float:
    """Returns the share of the text's characters that get a piece of their own."""
    counts = Counter()
    for line in lines:
        counts.update(line)
    del counts[" "]
    most_frequent = counts.most_common(int(_LARGEST_SHARE_OF_CHARACTERS * vocab_size))
    covered = sum(count for _, count in most_frequent) / counts.total()
    return min(_CHARACTER_COVERAGE, max(_SMALLEST_COVERAGE, covered))
