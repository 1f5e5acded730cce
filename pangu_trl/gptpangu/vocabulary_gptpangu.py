"""The SentencePiece vocabulary under GPTPangu's tokenizer.

A space of the text becomes U+2582 and a newline U+2583, the text is cut into words, the words are joined by spaces, and
the whole goes through SentencePiece at once: word by word, float32 rounding would break ties differently.
"""

import re
from itertools import accumulate
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from .segmentation_gptpangu import join_words

VOCABULARY_FILE = "vocab.model"

SPACE, NEWLINE = "\u2582", "\u2583"
# The first ids of the official vocabulary, and of every vocabulary that GPTPanguTokenizer takes.
RESERVED_PIECES = ("<unk>", "<s>", "</s>", NEWLINE, SPACE, "<sep>", "<pad>", "<mask>", "<eod>", "<eot>")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


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
        return self._run(text, spaced_words(text), int)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Returns what `encode` gives of each text, by one call of SentencePiece: half of its time goes into calls."""
        try:
            return self._processor.encode([spaced_words(text) for text in texts], out_type=int, num_threads=1)
        except (RuntimeError, TypeError, UnicodeEncodeError):
            # One by one, the text that it cannot take is known.
            return [self.encode(text) for text in texts]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the same ids, and for each the characters of the text that it stands for, (start, end)."""
        joined = spaced_words(text)
        mapping = self._run(text, joined, "offset_mapping")
        # Every space in `joined` was added there, the text's own spaces having been replaced.
        added = list(accumulate((character == " " for character in joined), initial=0))
        return mapping["ids"], [(start - added[start], end - added[end]) for start, end in mapping["offsets"]]

    def _run(self, text: str, joined: str, return_type: type | str) -> Any:
        try:
            return self._processor.encode(joined, out_type=return_type)
        except (RuntimeError, UnicodeEncodeError):
            refuse_lone_surrogate(text, "text")
            raise


def spaced_words(text: str) -> str:
    """Returns the words of a text joined by spaces, its own spaces and newlines replaced by U+2582 and U+2583."""
    return join_words(text.replace(" ", SPACE).replace("\n", NEWLINE))


def piece_text(piece: str) -> str:
    """Returns the text that a piece, or a concatenation of pieces, stands for."""
    return piece.replace("\u2581", "").replace(SPACE, " ").replace(NEWLINE, "\n")


def refuse_lone_surrogate(text: str, where: str) -> None:
    """Raises a ValueError that names the place and the remedy if a text is not valid Unicode."""
    found = _LONE_SURROGATE.search(text)
    if found:
        around = text[max(0, found.start() - 10) : found.end() + 10]
        raise ValueError(
            f"{where}: lone surrogate U+{ord(found[0]):04X} near {around!r}, which is not valid Unicode; repair the "
            "text with .encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        )
