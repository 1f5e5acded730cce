"""Where a score is read."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    CTRLConfig,
    GPT2Config,
    NystromformerConfig,
    XLNetConfig,
)

from pangu_trl.models.reward_model import check_score_of_text
from pangu_trl.models.score_head import at_last_token


def test_the_last_token_is_the_last_that_the_mask_keeps_on_either_side_of_the_padding():
    states = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert at_last_token(states, torch.tensor([[0, 1, 1], [1, 1, 0]])).tolist() == [3.0, 5.0]


SMALL = dict(vocab_size=40, num_labels=1, pad_token_id=0)
KINDS_OF_MODELS = {
    "an encoder": (BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **SMALL), None),
    "a decoder whose head has another name": (CTRLConfig(n_embd=16, n_layer=1, n_head=2, dff=16, **SMALL), None),
    "one that reads the last column": (
        XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=16, **SMALL),
        r"XLNetForSequenceClassification, which gives a text the score -?\d+\.\d+ alone and -?\d+\.\d+ with padding",
    ),
    "one that takes no short text": (
        NystromformerConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_landmarks=2,
            segment_means_seq_len=64,
            **SMALL,
        ),
        "NystromformerForSequenceClassification, which cannot score a text of three tokens: ",
    ),
    "an encoder with a decoder": (
        BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, eos_token_id=2, **SMALL),
        "BartForSequenceClassification, an encoder with a decoder",
    ),
}


def test_a_language_model_gives_no_score():
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_layer=1, n_head=2, **SMALL))
    with pytest.raises(ValueError, match="GPT2LMHeadModel, a language model, which gives no score. Load it with"):
        check_score_of_text("reward_model", model, 0)


def test_a_model_with_several_numbers_gives_no_score():
    two_labels = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **SMALL | dict(num_labels=2))
    model = AutoModelForSequenceClassification.from_config(two_labels).eval()
    model.classifier = torch.nn.Sequential(model.classifier, torch.nn.Unflatten(1, (1, 2)))
    with pytest.raises(ValueError, match="gives 2 numbers for a text in the place of one score"):
        check_score_of_text("reward_model", model, 0)


@pytest.mark.parametrize(("config", "message"), KINDS_OF_MODELS.values(), ids=KINDS_OF_MODELS)
def test_models_whose_scores_hang_on_padding_are_refused(config, message):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    if message is None:
        check_score_of_text("reward_model", model, 0)
    else:
        with pytest.raises(ValueError, match=f"reward_model is a {message}"):
            check_score_of_text("reward_model", model, 0)
