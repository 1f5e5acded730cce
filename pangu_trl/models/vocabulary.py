"""Whether a model and a tokenizer have the same tokens, and which of a model's no tokenizer can write."""

from itertools import islice

from torch import nn
from transformers import PreTrainedTokenizerBase

from pangu_trl.data.answer_end import turn_end

from .score_head import innermost


def check_vocabulary(model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuses a tokenizer with tokens for which the model has no embedding.

    An embedding may have more rows than the tokenizer tokens; many are padded to a round size. Special tokens without a
    role in text (as Gemma 3's for images on its models of text alone) may lie beyond the embedding.

    Args:
        model: May be wrapped, and its weights sharded.
        tokenizer: The tokenizer whose ids it reads.
        name: The model, for errors.

    Raises:
        ValueError: It would end in an index error at the first record with such a token.
    """
    size = embedding_size(model)
    if size is None:
        return
    added = tokenizer.added_tokens_decoder
    in_use = {*_role_ids(tokenizer), turn_end(tokenizer)}
    beyond = sorted(
        (token_id, token)
        for token, token_id in tokenizer.get_vocab().items()
        if token_id >= size and (token_id in in_use or token_id not in added or not added[token_id].special)
    )
    if beyond:
        named = ", ".join(f"{token!r} ({token_id})" for token_id, token in beyond[:3])
        raise ValueError(
            f"{name}: {len(beyond)} tokens of the tokenizer are beyond the {size} rows of the model's embedding, as "
            f"{named}. Take the tokenizer that belongs to the model; or, where tokens were added to it, call "
            f"model.resize_token_embeddings({beyond[-1][0] + 1}) and save both. A pad token needs no row of its own: "
            "tokenizer.pad_token = tokenizer.eos_token."
        )


def embedding_size(model: nn.Module) -> int | None:
    """Rows of a model's input embedding; None where it cannot tell."""
    model = innermost(model)
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return getattr(model.config.get_text_config(), "vocab_size", None)
    # ZeRO-3 keeps the shape of what it shards.
    return getattr(weight, "ds_shape", weight.shape)[0]


def num_token_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token ids up to the highest that the tokenizer knows."""
    return max(tokenizer.get_vocab().values()) + 1


def plain_token_ids(tokenizer: PreTrainedTokenizerBase, most: int) -> list[int]:
    """The first ids, at most so many, of tokens that stand for text alone."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return list(islice((token for token in range(tokenizer.vocab_size) if token not in special), most))


def limit_vocabulary(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Notes on a language model which ids its tokenizer knows, see `known_ids`."""
    innermost(model).num_known_ids = num_token_ids(tokenizer)


def known_ids(model: nn.Module) -> int | None:
    """Ids up to which a language model may choose; None if that was not noted.

    Rows that pad the embedding to a round size were never trained, and what they would write has no text.
    """
    return getattr(innermost(model), "num_known_ids", None)


def padding_ids(model: nn.Module, num_ids: int | None) -> list[int] | None:
    """Ids that generation must not choose, as its `suppress_tokens` takes them: None for none."""
    size = getattr(innermost(model).config.get_text_config(), "vocab_size", None)
    if num_ids is None or size is None or size <= num_ids:
        return None
    return list(range(num_ids, size))


def _role_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    roles = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    return {getattr(tokenizer, f"{role}_token_id", None) for role in roles} - {None}
