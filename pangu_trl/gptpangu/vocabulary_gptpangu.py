"""The SentencePiece vocabulary under GPTPangu's tokenizer: reading one, and training one for smaller models.

A space of the text becomes U+2582 and a newline U+2583, the text is cut into words, the words are joined by spaces, and
the whole goes through SentencePiece at once: word by word, float32 rounding would break ties differently.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from .segmentation_gptpangu import segment

if TYPE_CHECKING:
    from .tokenization_gptpangu import GPTPanguTokenizer

VOCABULARY_FILE = "vocab.model"

SPACE, NEWLINE = "\u2582", "\u2583"
# The first ids of the official vocabulary, and of every vocabulary that GPTPanguTokenizer takes.
RESERVED_PIECES = ("<unk>", "<s>", "</s>", NEWLINE, SPACE, "<sep>", "<pad>", "<mask>", "<eod>", "<eot>")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
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


class PanguVocabulary:
    """Turns plain text into ids, and ids into text, with one SentencePiece model.

    Immutable, and pickled as the bytes of the model alone: the fingerprint that `datasets` takes of a tokenizer then
    depends on its vocabulary and not on what it tokenized before, and a copy outlives the file.

    Args:
        model: Content of a `vocab.model` file.
        source: Where it comes from, for error messages.

    Raises:
        ValueError: Not a SentencePiece model, or one whose first pieces are not those of GPTPangu.
    """

    def __init__(self, model: bytes, source: str = "model") -> None:
        try:
            self._processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(
                f"{source}: expected a SentencePiece model, got {len(model)} bytes that begin with {model[:24]!r}; "
                "if that is a Git LFS pointer, fetch the file itself"
            ) from error
        self.model = model
        self.pieces = [self._processor.id_to_piece(index) for index in range(self._processor.get_piece_size())]
        self.ids = {piece: index for index, piece in enumerate(self.pieces)}
        self.texts = {index: piece_text(piece) for index, piece in enumerate(self.pieces)}
        for index, expected in enumerate(RESERVED_PIECES):
            found = self.pieces[index] if index < len(self.pieces) else None
            if found != expected:
                raise ValueError(
                    f"{source}: piece {index} must be {expected!r} as in the official vocabulary of GPTPangu, got "
                    f"{found!r}; use the official vocab.model or one made by train_vocabulary"
                )

    @classmethod
    def read(cls, path: Path) -> "PanguVocabulary":
        """Reads a `vocab.model` file."""
        return cls(path.read_bytes(), str(path))

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        return type(self), (self.model,)

    def encode(self, text: str) -> list[int]:
        """Returns the official ids of a text in which no token is special."""
        return self._run(text, join_words(text), int)

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the same ids, and for each the characters of the text that it stands for, (start, end)."""
        joined = join_words(text)
        mapping = self._run(text, joined, "offset_mapping")
        # Every space in `joined` was added there, the text's own spaces having been replaced.
        added = list(accumulate((character == " " for character in joined), initial=0))
        return mapping["ids"], [(start - added[start], end - added[end]) for start, end in mapping["offsets"]]

    def _run(self, text: str, joined: str, return_type: type | str) -> Any:
        try:
            return self._processor.encode(joined, out_type=return_type)
        except (RuntimeError, UnicodeEncodeError):
            _refuse_lone_surrogate(text, "text")
            raise


def join_words(text: str) -> str:
    """Returns the words of a text joined by spaces, its own spaces and newlines replaced by U+2582 and U+2583."""
    return " ".join(segment(text.replace(" ", SPACE).replace("\n", NEWLINE)))


def piece_text(piece: str) -> str:
    """Returns the text that a piece, or a concatenation of pieces, stands for."""
    return piece.replace("\u2581", "").replace(SPACE, " ").replace(NEWLINE, "\n")


def train_vocabulary(
    texts: Iterable[str], output_dir: str | Path, vocab_size: int, num_threads: int = 2
) -> "GPTPanguTokenizer":
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
    from .tokenization_gptpangu import GPTPanguTokenizer  # that module imports this one

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
        _refuse_lone_surrogate(text, f"texts[{index}]")
        lines.append(join_words(text).replace(_TRAINER_UNKNOWN, " "))
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
        size = f"{len(lines)} texts of {sum(map(len, lines))} characters"
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


def _refuse_lone_surrogate(text: str, where: str) -> None:
    found = _LONE_SURROGATE.search(text)
    if found:
        around = text[max(0, found.start() - 10) : found.end() + 10]
        raise ValueError(
            f"{where}: lone surrogate U+{ord(found[0]):04X} near {around!r}, which is not valid Unicode; repair the "
            "text with .encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        )
