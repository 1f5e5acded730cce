"""Loading a trained reward model and scoring whole answers with it."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pangu_trl.data.answer_end import answer_end
from pangu_trl.data.collators import pad_sequences
from pangu_trl.data.conversations import EncodingColumns
from pangu_trl.data.records import answer_text
from pangu_trl.data.tokenizing import NOTHING_SAID, encode_completion, encode_prompt

from .attribute_head import attribute_weights, sum_up_attributes
from .loading import load_with_adapter, read_adapter_config
from .model_kinds import language_model_kind
from .modes import evaluation_mode, position_limit
from .padding_free import is_padding_free
from .score_head import innermost
from .sequence_scores import score_without_padding, sequence_scores
from .sharding import is_sharded

logger = logging.getLogger(__name__)


class ScoringError(ValueError):
    """One answer that cannot be scored.

    Attributes:
        index: Place of the answer in the sequence that was to be scored, from 0, so that a caller who knows the
            file can name the line.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


def score_responses(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    responses: Sequence[Any],
    batch_size: int,
    show_progress: bool = False,
    columns: Sequence[EncodingColumns] | None = None,
) -> list[float]:
    """Scores each response as an answer to the prompt at the same place.

    The score is the classification head's output at the end of sequence, see `sequence_scores`. It does not depend on
    which other responses share the batch, and is the same to the last bit for what has the same tokens.

    Args:
        model: Sequence classification model with one label and `pad_token_id` in its config.
        tokenizer: Tokenizer the model was trained with.
        prompts: N prompts, each a text or a list of messages.
        responses: N responses, each a text or a list of messages. A prompt with K responses stands K times.
        batch_size: Number of responses in one forward pass.
        show_progress: Whether to draw a progress bar.
        columns: What each record says beside its texts: tools and the like; nothing if None.

    Returns:
        N scores, in the order given.

    Raises:
        ScoringError: If a response is longer than the model's positions allow. Nothing is cut.
        ValueError: If the model is no reward model, or `prompts` and `responses` differ in length.
    """
    sequences = encode_checked(model, tokenizer, prompts, responses, columns)
    # What is the same to the model is scored once: in another place of a batch the last bit differs, and a tie is none.
    firsts = {tuple(sequence): index for index, sequence in reversed(list(enumerate(sequences)))}
    order = _order(prompts, [len(sequence) for sequence in sequences], is_padding_free(model))
    order = [index for index in order if firsts[tuple(sequences[index])] == index]
    scores: dict[int, float] = {}
    progress = tqdm(total=len(order), desc="scoring", disable=not show_progress)
    with evaluation_mode(model), torch.no_grad(), progress:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            batch_scores = _score_batch(model, [sequences[index] for index in batch])
            scores |= zip(batch, batch_scores, strict=True)
            progress.update(len(batch))
    return [scores[firsts[tuple(sequence)]] for sequence in sequences]


def share_prompts(model: PreTrainedModel | PeftModel) -> None:
    """Has a loaded model score without padding, and the responses to one prompt together, if it can."""
    try:
        score_without_padding(model, position_limit(model))
    except ValueError as error:
        logger.info("Responses are scored with padding: %s", error)


def _order(prompts: Sequence[Any], lengths: list[int], shares: bool) -> list[int]:
    """Longest first: little padding, and a batch that does not fit into memory fails at once rather than at the end.

    With `shares` the responses to one prompt stay together.
    """
    groups: list[list[int]] = []
    for index, prompt in enumerate(prompts):
        if shares and index and prompt == prompts[index - 1]:
            groups[-1].append(index)
        else:
            groups.append([index])
    longest_first = sorted(groups, key=lambda group: -max(lengths[index] for index in group))
    return [index for group in longest_first for index in group]


def load_reward_model(
    model_id: str, load: Callable[..., tuple[Any, Any, list[str]]] = load_with_adapter, **model_kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a trained reward model, full or an adapter, with its tokenizer.

    One with several attributes gets a head with one output, which gives their weighted sum.

    Args:
        model_id: Folder or hub id.
        load: `load_with_adapter`, or `load_merged` for a model that will be trained.
        **model_kwargs: Passed on to `from_pretrained` of the model.

    Raises:
        ValueError: If it cannot be loaded, has another number of labels than one, or its files hold no weights for the
            score head.
    """
    adapter_config, num_labels = read_adapter_config(model_id), 1
    is_adapter = adapter_config is not None
    if is_adapter:
        writes = language_model_kind(adapter_config)
    else:
        # An adapter's base is a language model, whose config knows nothing of the single label.
        try:
            config = AutoConfig.from_pretrained(model_id)
            num_labels = config.num_labels
        except (OSError, ValueError) as error:
            raise ValueError(f"{model_id}: no model that can be loaded; {error}") from error
        writes = language_model_kind(config)
        if attribute_weights(config, model_id) is None and num_labels != 1:
            found = f"a reward model has num_labels 1; this model has {num_labels}"
            if writes is not None:
                found = _no_reward_model(writes)
            raise ValueError(f"{model_id}: {found}. Give the folder that reward training wrote")
    model, tokenizer, missing = load(
        AutoModelForSequenceClassification, model_id, num_labels=num_labels, **model_kwargs
    )
    if missing:
        found = f"the files hold no weights for {', '.join(missing)}, so every score would be random"
        if writes is not None:
            found = f"{_no_reward_model(writes)}; {found}"
        raise ValueError(f"{model_id}: {found}. Give the folder that reward training wrote")
    if not is_adapter:
        sum_up_attributes(model, model_id)
    # The base model of an adapter keeps its own pad id, which may not be the one that the adapter was trained with.
    config = model.config.get_text_config()
    if tokenizer.pad_token_id is not None and (is_adapter or config.pad_token_id is None):
        config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _no_reward_model(kind: str) -> str:
    return f"a language model ({kind}), not a reward model: it writes answers and scores none"


def encode_checked(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    responses: Sequence[Any],
    columns: Sequence[EncodingColumns] | None = None,
) -> list[list[int]]:
    """The tokens of every prompt with its response, which the model can score; arguments and errors of the scoring."""
    _check_reward_model(model)
    if len(prompts) != len(responses):
        raise ValueError(f"every response needs its prompt; got {len(prompts)} prompts and {len(responses)} responses")
    sequences = _encode(tokenizer, prompts, responses, columns or [NOTHING_SAID] * len(prompts))
    _check_lengths(sequences, model)
    return sequences


def encode_sequence(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, response: Any, columns: EncodingColumns = NOTHING_SAID
) -> list[int]:
    """The tokens that are scored: prompt, response and end of sequence."""
    return encode_prompt(tokenizer, prompt, columns) + encode_response(tokenizer, prompt, response, columns)


def encode_response(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, response: Any, columns: EncodingColumns = NOTHING_SAID
) -> list[int]:
    """The tokens of a response with its end of sequence. Unlike in training, it may be empty."""
    text = answer_text(response)
    calls_tools = not isinstance(response, str) and any(message.get("tool_calls") for message in response)
    if not calls_tools and not text.strip() and not tokenizer(text, add_special_tokens=False)["input_ids"]:
        # No training data, so `encode_completion` refuses it; but a policy does end an answer at once now and then.
        return [answer_end(tokenizer, is_chat=not isinstance(response, str))]
    return encode_completion(tokenizer, prompt, response, columns)


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    responses: Sequence[Any],
    columns: Sequence[EncodingColumns],
) -> list[list[int]]:
    sequences = []
    for index, texts in enumerate(zip(prompts, responses, columns, strict=True)):
        try:
            sequences.append(encode_sequence(tokenizer, *texts))
        except ValueError as error:
            raise ScoringError(str(error), index) from error
    return sequences


def _score_batch(model: PreTrainedModel | PeftModel, sequences: list[list[int]]) -> list[float]:
    input_ids, attention_mask = pad_sequences(sequences, model.config.get_text_config().pad_token_id, side="right")
    scores = sequence_scores(model, input_ids.to(model.device), attention_mask.to(model.device))
    return scores.float().tolist()


def _check_reward_model(model: PreTrainedModel) -> None:
    if model.config.num_labels != 1:
        raise ValueError(
            f"a reward model gives one score an answer (num_labels 1); this {model.config.model_type} model has "
            f"num_labels {model.config.num_labels}. Load a sequence classification model trained as a reward model; "
            "one with attributes by pangu_trl.models.reward_model.load_reward_model, which sums them up"
        )
    if model.config.get_text_config().pad_token_id is None:
        raise ValueError(
            "the reward model's config.json has no 'pad_token_id', so the last token of an answer cannot be told "
            "from padding; set it to the pad token id the model was trained with"
        )
    check_score_of_text("the reward model", model, model.config.get_text_config().pad_token_id)


def check_score_of_text(name: str, model: PreTrainedModel | PeftModel, pad_token_id: int) -> None:
    """Refuses models whose score of a text cannot be read, or hangs on how much it is padded.

    Of models with a head called `score` the score is read by the mask; of others it is what they return, which is tried
    on three tokens. Weights that are sharded are not tried.

    Args:
        name: What to call the model in the message.
        model: Sequence classification model.
        pad_token_id: What pads its texts.

    Raises:
        ValueError: The message says what to take instead.
    """
    kind = type(innermost(model)).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{name} is a {kind}, an encoder with a decoder, which reads its score at the end of sequence and fails at "
            "texts that have none, as answers that were cut off. Take a decoder or an encoder."
        )
    if innermost(model).get_output_embeddings() is not None:
        raise ValueError(
            f"{name} is a {kind}, a language model, which gives no score. Load it with "
            "AutoModelForSequenceClassification and num_labels=1."
        )
    if hasattr(innermost(model), "score") or is_sharded(model):
        return
    text = [token for token in range(5) if token != pad_token_id][:3]
    alone, padded = (
        pad_sequences([text, *others], pad_token_id, side="right") for others in ([], [[text[0]] * (len(text) + 2)])
    )
    if model.device.type == "cpu" and "flash" in str(model.config._attn_implementation):
        # It has not been moved yet to where it can run.
        return
    try:
        with evaluation_mode(model), torch.no_grad():
            scores = [
                sequence_scores(model, *(tensor.to(model.device) for tensor in batch))[0].float()
                for batch in (alone, padded)
            ]
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"{name} is a {kind}, which cannot score a text of three tokens: {error}. An answer may be as short. Take "
            "another model."
        ) from error
    if scores[0].numel() != 1:
        raise ValueError(
            f"{name} is a {kind}, which gives {scores[0].numel()} numbers for a text in the place of one score. Load a "
            "model with num_labels=1."
        )
    rtol, atol = (0.1, 0.1) if model.dtype.itemsize == 2 else (1e-2, 1e-3)
    if not torch.allclose(*scores, rtol=rtol, atol=atol):
        raise ValueError(
            f"{name} is a {kind}, which gives a text the score {scores[0].item():.4f} alone and {scores[1].item():.4f} "
            "with padding behind it, so that scores would depend on the other texts of a batch. Take another model."
        )


def _check_lengths(sequences: list[list[int]], model: PreTrainedModel) -> None:
    limit = position_limit(model)
    for index, sequence in enumerate(sequences):
        if limit is not None and len(sequence) > limit:
            raise ScoringError(
                f"prompt and answer together have {len(sequence)} tokens, the reward model takes {limit}; nothing is "
                "cut, so leave the record out or sample shorter answers",
                index,
            )
