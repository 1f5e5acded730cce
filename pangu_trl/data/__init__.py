"""Data cards, canonical records and tokenising: everything between a file of texts and the trainers."""

from .cards import CardError, DataCard
from .jsonl import read_jsonl, write_jsonl
from .loading import load_records
from .records import KINDS, Demonstration, Message, Prompt, Ranking, RecordError, Text, validate_record
from .tokenizing import encode_completion, encode_prompt, tokenize_demonstrations, tokenize_prompts, tokenize_rankings

__all__ = [
    "KINDS",
    "CardError",
    "DataCard",
    "Demonstration",
    "Message",
    "Prompt",
    "Ranking",
    "RecordError",
    "Text",
    "encode_completion",
    "encode_prompt",
    "load_records",
    "read_jsonl",
    "tokenize_demonstrations",
    "tokenize_prompts",
    "tokenize_rankings",
    "validate_record",
    "write_jsonl",
]
