"""Data cards, canonical records and tokenising: everything between a file of texts and the trainers."""

from .cards import CardError, DataCard
from .conversations import EncodingColumns
from .jsonl import read_jsonl, write_jsonl
from .loading import load_records
from .records import KINDS, Demonstration, Message, Prompt, Ranking, RecordError, Text, validate_record
from .tokenized_datasets import tokenize_demonstrations, tokenize_prompts, tokenize_rankings, tokenize_texts
from .tokenizing import encode_completion, encode_prompt, encode_turns

__all__ = [
    "KINDS",
    "CardError",
    "DataCard",
    "Demonstration",
    "EncodingColumns",
    "Message",
    "Prompt",
    "Ranking",
    "RecordError",
    "Text",
    "encode_completion",
    "encode_prompt",
    "encode_turns",
    "load_records",
    "read_jsonl",
    "tokenize_demonstrations",
    "tokenize_prompts",
    "tokenize_rankings",
    "tokenize_texts",
    "validate_record",
    "write_jsonl",
]
