"""Tokenizer of GPTPangu: jieba's words, then SentencePiece, with the official ids bit for bit.

Where it differs from the official code: `<eot>` and the other special tokens, where they stand in a text, become their
own ids; the official code cuts them into characters. Encode what users write with `split_special_tokens=True`: that is
the official behaviour, and a prompt cannot smuggle in an `<eot>`.
"""

import os
import re
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer

from .encoding_gptpangu import (
    NO_SPAN,
    EncodingRequest,
    Span,
    Text,
    TokenOrigins,
    Tokens,
    pad_columns,
    read_rows,
    spread,
    truncate,
)
from .vocabulary_gptpangu import NEWLINE, RESERVED_PIECES, SPACE, VOCABULARY_FILE, PanguVocabulary, piece_text

# `<sep>` ends what the user says and `<eot>` what the assistant says: the tokens alone tell who spoke, a prompt always
# ends at a special token, and tokens of prompt and answer never merge. There is no token for anything else, so what has
# no place is refused: tools, a system turn in the middle, parts of a content that are no text.
CHAT_TEMPLATE = """\
{%- if tools -%}
{{- raise_exception("GPTPangu's chat template has no place for tools") -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['tool_calls'] or message['function_call'] -%}
{{- raise_exception("GPTPangu's chat template has no place for tool calls") -}}
{%- elif message['content'] is not string -%}
{{- raise_exception("GPTPangu's chat template writes text only; the content of a message must be text") -}}
{%- elif message['role'] == 'system' -%}
{%- if not loop.first -%}
{{- raise_exception("GPTPangu's chat template has a place for a system message only before all others") -}}
{%- endif -%}
{{- message['content'] + '\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- message['content'] + sep_token -}}
{%- elif message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}
{{- raise_exception("the role of a message must be system, user or assistant, got '" + message['role'] + "'") -}}
{%- endif -%}
{%- endfor -%}
"""

# What the stock implementation handles; it is several times slower.
_STOCK_OPTIONS = ("return_overflowing_tokens", "return_length", "sanitize_control_tokens")
_EOT = RESERVED_PIECES.index("<eot>")
_REQUEST_OPTIONS = frozenset(field.name for field in fields(EncodingRequest))


class GPTPanguTokenizer(PreTrainedTokenizer):
    """Tokenizer of GPTPangu over a `vocab.model` file, the official one or one of `train_vocabulary`.

    Nothing is added to a text by default, as in the official code; a pair of texts is joined by `<sep>`. Decoding is a
    concatenation, so the text of a prefix of ids is a prefix of the text. It writes special tokens as they are, `<unk>`
    too, unless `skip_special_tokens`; the official decoder drops `<s>` and `</s>` and writes U+2047 for `<unk>`.

    Args:
        vocab_file: Path of `vocab.model`. Without it only unpickling can fill the tokenizer, as `datasets` does.
        model_file: Name of the same argument in published code.
        append_eot: Whether encoding with special tokens ends in `<eot>`. Saved with the tokenizer.
        kwargs: As for every PreTrainedTokenizer.

    Raises:
        ValueError: The folder or the file holds no vocabulary that GPTPangu can use.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_FILE}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str | os.PathLike | None = None,
        *,
        model_file: str | os.PathLike | None = None,
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "<eot>",
        unk_token: str | AddedToken = "<unk>",
        sep_token: str | AddedToken = "<sep>",
        pad_token: str | AddedToken = "<pad>",
        mask_token: str | AddedToken = "<mask>",
        append_eot: bool = False,
        **kwargs: Any,
    ) -> None:
        path = vocab_file if vocab_file is not None else model_file
        if path is None and "name_or_path" in kwargs:
            raise ValueError(f"{kwargs['name_or_path']}: expected a file {VOCABULARY_FILE}, found none")
        # The base class asks for the vocabulary while it is set up.
        self._vocabulary = None if path is None else PanguVocabulary.read(Path(path))
        self.append_eot = append_eot
        self._added_tokens_decoder = {
            index: AddedToken(piece, normalized=False, special=True)
            for index, piece in enumerate(RESERVED_PIECES)
            if piece not in (NEWLINE, SPACE)
        }
        # A saved copy would otherwise still point at the remote code of the published folder.
        kwargs.pop("auto_map", None)
        if kwargs.get("chat_template") is None:
            kwargs["chat_template"] = CHAT_TEMPLATE
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            mask_token=mask_token,
            append_eot=append_eot,
            **kwargs,
        )
        # Without a name of their own in transformers, but special: skipped by skip_special_tokens.
        self._extra_special_tokens += [token for token in ("</s>", "<eod>") if token not in self.all_special_tokens]

    @property
    def vocabulary(self) -> PanguVocabulary:
        """The vocabulary file's content, without added tokens."""
        if self._vocabulary is None:
            raise ValueError("this GPTPanguTokenizer has no vocabulary; make it with from_pretrained or vocab_file=")
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of pieces in the vocabulary file, without added tokens."""
        return 0 if self._vocabulary is None else len(self._vocabulary.pieces)

    @property
    def vocab(self) -> dict[str, int]:
        """The id of every token, added ones included."""
        return self.get_vocab()

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every token, added ones included."""
        pieces = {} if self._vocabulary is None else self._vocabulary.ids
        return {**pieces, **self._added_tokens_encoder}

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Writes `vocab.model` and returns its path."""
        name = (f"{filename_prefix}-" if filename_prefix else "") + VOCABULARY_FILE
        path = Path(save_directory) / name
        path.write_bytes(self.vocabulary.model)
        return (str(path),)

    def _update_trie(self, unique_no_split_tokens: list[str] | None = None) -> None:
        super()._update_trie(unique_no_split_tokens)
        added = self._added_tokens_decoder.values()
        longest_first = sorted((token.content for token in added), key=len, reverse=True)
        self._added_token_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._matches_added_tokens_literally = not any(
            token.lstrip or token.rstrip or token.single_word for token in added
        )

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Returns the ids of a text, or of two texts joined by `<sep>`, followed by `<eot>` if `append_eot`."""
        ids = token_ids_0 if token_ids_1 is None else [*token_ids_0, self.sep_token_id, *token_ids_1]
        return [*ids, _EOT] if self.append_eot else ids

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Returns 1 for each token that `build_inputs_with_special_tokens` adds, 0 for those of the texts."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        mask = [0] * len(token_ids_0)
        if token_ids_1 is not None:
            mask += [1] + [0] * len(token_ids_1)
        return [*mask, 1] if self.append_eot else mask

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Renders and tokenizes a conversation; see PreTrainedTokenizerBase, whose arguments these are.

        `return_assistant_tokens_mask`, which the base class refuses to tokenizers written in Python, works.
        """
        if not kwargs.get("return_assistant_tokens_mask"):
            return super().apply_chat_template(conversation, *args, **kwargs)
        if kwargs.get("truncation") and self.truncation_side == "left":
            raise NotImplementedError(
                "what is cut off on the left shifts the assistant's tokens: encode without truncation, then cut the "
                "ids and the mask"
            )
        tokenizer_kwargs = dict(kwargs.get("tokenizer_kwargs") or {})
        wants_offsets = tokenizer_kwargs.get("return_offsets_mapping", False)
        kwargs["tokenizer_kwargs"] = {**tokenizer_kwargs, "return_offsets_mapping": True}
        encoding = super().apply_chat_template(conversation, *args, **kwargs)
        if not wants_offsets:
            encoding.pop("offset_mapping")
        return encoding

    def is_lossless(self, text: str) -> bool:
        """Returns whether the ids of a text decode to the very text, which NFKC and unknown characters prevent."""
        return self.decode(self.encode(text, add_special_tokens=False)) == text

    def _encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        given = read_rows(text, text_pair, options.get("is_split_into_words", False))
        if given is None or any(options.get(name) for name in _STOCK_OPTIONS):
            if options.get("return_offsets_mapping"):
                raise NotImplementedError(
                    "return_offsets_mapping needs texts, pairs or words, not ids, and none of "
                    + ", ".join(_STOCK_OPTIONS)
                )
            return super()._encode_plus(text, text_pair, **options)
        # `encode` passes this option only when its own caller does.
        options.setdefault("split_special_tokens", self.split_special_tokens)
        request = EncodingRequest(**{name: value for name, value in options.items() if name in _REQUEST_OPTIONS})
        pairs, is_batch = given
        tokens = iter(self._encode_texts([text for pair in pairs for text in pair if text is not None], request))
        rows = [self._make_row(next(tokens), None if second is None else next(tokens), request) for _, second in pairs]
        columns = pad_columns(rows, self._fillers(request), request, self.padding_side)
        encodings = None
        if request.return_offsets_mapping:
            origins = (columns["offset_mapping"], columns.pop("sequence_ids"), columns.pop("word_ids"))
            encodings = [TokenOrigins(*row) for row in zip(*origins, strict=True)]
        if not is_batch:
            columns = {name: rows[0] for name, rows in columns.items()}
        return BatchEncoding(
            columns,
            encoding=encodings,
            tensor_type=request.return_tensors,
            prepend_batch_axis=not is_batch,
            n_sequences=1 if all(second is None for _, second in pairs) else 2,
        )

    def _fillers(self, request: EncodingRequest) -> dict[str, Any]:
        """Returns the columns to return, each with what pads it."""
        fillers: dict[str, Any] = {"input_ids": self.pad_token_id}
        if request.return_token_type_ids:
            fillers["token_type_ids"] = self.pad_token_type_id
        if request.return_special_tokens_mask:
            fillers["special_tokens_mask"] = 1
        with_mask = request.return_attention_mask
        if with_mask or (with_mask is None and "attention_mask" in self.model_input_names):
            fillers["attention_mask"] = 0
        if request.return_offsets_mapping:
            fillers |= {"offset_mapping": NO_SPAN, "sequence_ids": None, "word_ids": None}
        return fillers

    def _make_row(self, first: Tokens, second: Tokens | None, request: EncodingRequest) -> dict[str, list]:
        """Returns the columns of one text or pair, cut and with the tokens added that the request asks for."""
        build = self.build_inputs_with_special_tokens if request.add_special_tokens else _concatenate
        ids = build(first.ids, None if second is None else second.ids)
        if request.max_length and len(ids) > request.max_length:
            excess = len(ids) - request.max_length
            first, second = truncate(first, second, excess, request.truncation_strategy, self.truncation_side)
            ids = build(first.ids, None if second is None else second.ids)
        self._eventual_warn_about_too_long_sequence(ids, request.max_length, request.verbose)
        row: dict[str, list] = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if request.return_token_type_ids or request.return_special_tokens_mask or request.return_offsets_mapping:
            self._add_columns(row, first, second, request)
        return row

    def _add_columns(
        self, row: dict[str, list], first: Tokens, second: Tokens | None, request: EncodingRequest
    ) -> None:
        """Adds to a row what is seldom asked for."""
        second_ids = None if second is None else second.ids
        if request.add_special_tokens:
            row["token_type_ids"] = self.create_token_type_ids_from_sequences(first.ids, second_ids)
            row["special_tokens_mask"] = self.get_special_tokens_mask(first.ids, second_ids)
        else:
            row["token_type_ids"] = [0] * len(row["input_ids"])
            row["special_tokens_mask"] = [0] * len(row["input_ids"])
        if request.return_offsets_mapping:
            is_added = row["special_tokens_mask"]
            parts = [first] if second is None else [first, second]
            row["offset_mapping"] = spread(chain(*(part.spans for part in parts)), is_added, NO_SPAN)
            row["word_ids"] = spread(chain(*(part.words for part in parts)), is_added, None)
            sequence_ids = (sequence for sequence, part in enumerate(parts) for _ in part.ids)
            row["sequence_ids"] = spread(sequence_ids, is_added, None)

    def _encode_texts(self, texts: list[Text], request: EncodingRequest) -> list[Tokens]:
        """Returns the tokens of each text; of whole texts without spans all at once, which is faster."""
        knows_parts = request.split_special_tokens or self._matches_added_tokens_literally
        if request.return_offsets_mapping or not knows_parts or not all(isinstance(text, str) for text in texts):
            return [self._encode_text(text, request) for text in texts]
        split = [[text] if request.split_special_tokens else self._added_token_pattern.split(text) for text in texts]
        encoded = iter(self.vocabulary.encode_batch([part for parts in split for part in parts[::2] if part]))
        rows = []
        for parts in split:
            ids: list[int] = []
            for index, part in enumerate(parts):
                if index % 2:
                    ids.append(self._added_tokens_encoder[part])
                elif part:
                    ids += next(encoded)
            rows.append(Tokens(ids, [], []))
        return rows

    def _encode_text(self, text: Text, request: EncodingRequest) -> Tokens:
        """Returns the ids of a text or of its words and, if requested, where they come from."""
        if isinstance(text, str):
            ids, spans = self._encode_string(text, request)
            return Tokens(ids, spans, [None] * len(spans))
        tokens = Tokens([], [], [])
        for number, word in enumerate(text):
            ids, spans = self._encode_string(word, request)
            tokens.ids.extend(ids)
            tokens.spans.extend(spans)
            tokens.words.extend([number] * len(spans))
        return tokens

    def _encode_string(self, text: str, request: EncodingRequest) -> tuple[list[int], list[Span]]:
        """Returns the ids of a string and, if requested, the characters that each stands for."""
        with_spans = request.return_offsets_mapping
        if request.split_special_tokens:
            parts = [text]
        elif self._matches_added_tokens_literally:
            parts = self._added_token_pattern.split(text)
        elif with_spans:
            raise NotImplementedError("offsets are unknown with added tokens that strip or that match only whole words")
        else:
            return self.convert_tokens_to_ids(self.tokenize(text)), []
        ids: list[int] = []
        spans: list[Span] = []
        start = 0
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(self._added_tokens_encoder[part])
                spans.append((start, start + len(part)))
            elif with_spans:
                part_ids, part_spans = self.vocabulary.encode_with_spans(part)
                ids += part_ids
                spans += [(start + first, start + end) for first, end in part_spans] if start else part_spans
            elif part:
                ids += self.vocabulary.encode(part)
            start += len(part)
        return ids, spans if with_spans else []

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self.vocabulary.pieces[index] for index in self.vocabulary.encode(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.vocabulary.ids.get(token, self.unk_token_id)

    def _convert_id_to_token(self, index: int) -> str:
        if index not in self.vocabulary.texts:
            raise ValueError(
                f"id {index} is outside the vocabulary of {len(self)} tokens; replace ignored labels (-100) by the pad "
                "id before decoding, and do not let a model with spare embedding rows sample them"
            )
        return self.vocabulary.pieces[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Returns the text that tokens stand for."""
        return piece_text("".join(tokens))

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        if skip_special_tokens:
            special = set(self.all_special_ids)
            ids = [index for index in ids if index not in special]
        texts = self.vocabulary.texts
        text = "".join([texts[index] if index in texts else self.convert_ids_to_tokens(index) for index in ids])
        if clean_up_tokenization_spaces or (clean_up_tokenization_spaces is None and self.clean_up_tokenization_spaces):
            return self.clean_up_tokenization(text)
        return text


def _concatenate(first: list[int], second: list[int] | None = None) -> list[int]:
    return first if second is None else first + second
