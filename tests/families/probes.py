"""What every architecture must show: equal to the model alone, or a refusal before anything is sampled."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from pangu_trl import KWiseRewardConfig, KWiseRewardTrainer, PPOConfig, PPOTrainer
from pangu_trl.models.lora_targets import check_lora_targets, resolve_lora_targets

from .architectures import Architecture

# What a cell of the table says beside a refusal.
EQUAL = "equal"
NOT_TRIED = "not tried"
TOLERANCE = dict(atol=1e-5, rtol=1e-5)


def make_config(architecture: Architecture, tokenizer: Any) -> Any:
    return architecture.config(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)


def make_policy(config: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    return _spread(language_model_class(config).from_config(copy.deepcopy(config)))


def language_model_class(config: Any) -> Any:
    """Models of text and images are causal language models by another name, some of them by both."""
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText


def make_classifier(config: Any, folder: Path) -> PreTrainedModel | None:
    """As a user gets one: `from_pretrained(..., num_labels=1)`. None where transformers has no such class."""
    torch.manual_seed(2)
    config = copy.deepcopy(config)
    config.num_labels = 1
    try:
        model = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        return None
    _spread(model).save_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()


def _spread(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that a wrong position or mask shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)
    return model.eval()


def ppo_arguments(tokenizer: Any, prompts: Dataset, folder: Path, **options: Any) -> dict[str, Any]:
    defaults = dict(output_dir=str(folder), per_device_train_batch_size=3, num_rollout_batches=2, num_ppo_epochs=1)
    defaults |= dict(max_prompt_length=48, max_completion_length=20, max_steps=1, learning_rate=1e-3, use_cpu=True)
    defaults |= dict(save_strategy="no", report_to="none", disable_tqdm=True)
    return dict(args=PPOConfig(**defaults | options), train_dataset=prompts, processing_class=tokenizer)


def sequence_rows(rollout: Any) -> list[tuple[int, Tensor, int]]:
    """Index, tokens (1, T) without padding, and answer length of each row."""
    rows = zip(rollout.input_ids, rollout.attention_mask, rollout.completions(), strict=True)
    return [(index, ids[mask == 1].unsqueeze(0), len(answer)) for index, (ids, mask, answer) in enumerate(rows)]


def assert_logprobs_alone(policy: PreTrainedModel, rollout: Any) -> None:
    for index, ids, length in sequence_rows(rollout):
        with torch.no_grad():
            logits = policy(input_ids=ids, use_cache=False).logits[0, -length - 1 : -1].float()
        expected = logits.log_softmax(-1).gather(-1, ids[0, -length:].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(rollout.logprobs[index, :length], expected, **TOLERANCE)
        torch.testing.assert_close(rollout.ref_logprobs[index, :length], expected, **TOLERANCE)


def assert_scores_and_values_alone(judge: PreTrainedModel, rollout: Any) -> None:
    """By the model's own call on one text without padding, of which the last token is the one that it scores."""
    # A policy may well say the pad token, which the model's own call would take for padding.
    for config in (judge.config, judge.config.get_text_config()):
        config.pad_token_id = -1
    for index, ids, length in sequence_rows(rollout):
        with torch.no_grad():
            # As many calls as tokens: the score of each beginning of the text is the value behind it.
            values = [
                judge(input_ids=ids[:, :end], attention_mask=torch.ones_like(ids[:, :end])).logits[0, 0]
                for end in range(ids.shape[1] - length, ids.shape[1] + 1)
            ]
        torch.testing.assert_close(rollout.scores[index], values[-1], **TOLERANCE)
        torch.testing.assert_close(rollout.values[index, :length], torch.stack(values[:-1]), **TOLERANCE)


def run_rollout(architecture: Architecture, tokenizer: Any, prompts: Dataset, folder: Path) -> str:
    """One rollout and one step; then the folder loads as the policy that was trained."""
    config = make_config(architecture, tokenizer)
    policy, judge = make_policy(config), make_classifier(config, folder / "judge")
    alone, judge_alone = copy.deepcopy(policy), copy.deepcopy(judge)
    models: dict[str, Any] = dict(model=policy, reward_model=judge)
    options = {}
    if judge is None or not hasattr(judge, "score"):
        models |= dict(reward_model=lambda prompts, completions, **_: [float(len(text)) for text in completions])
        options |= dict(share_backbone="value")
    if architecture.refusal is not None:
        with pytest.raises(ValueError, match=architecture.refusal) as refusal:
            PPOTrainer(**models, **ppo_arguments(tokenizer, prompts, folder / "run", **options)).train()
        return f"refused: {str(refusal.value).removeprefix('PPOTrainer: ')}"
    trainer = PPOTrainer(**models, **ppo_arguments(tokenizer, prompts, folder / "run", **options))
    trainer.train()
    rollout = trainer.passes.rollout
    assert rollout.attention_mask[:, 0].min() == 0, "no row is padded"
    assert_logprobs_alone(alone, rollout)
    gaps = [entry["policy/sampling_gap"] for entry in trainer.state.log_history if "policy/sampling_gap" in entry]
    assert max(gaps) < 1e-4, f"sampling gap {max(gaps)}"
    if not options:
        assert_scores_and_values_alone(judge_alone, rollout)
    trainer.save_model()
    loaded = language_model_class(config).from_pretrained(folder / "run").eval()
    ids = sequence_rows(rollout)[0][1]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model.policy.eval()(ids).logits, **TOLERANCE)
    return EQUAL if not options else "equal (log-probabilities; no sequence classification model)"


def run_encoder_reward(architecture: Architecture, policy: Any, tokenizer: Any, prompts: Dataset, folder: Path) -> str:
    judge = make_classifier(make_config(architecture, tokenizer), folder / "judge")
    alone = copy.deepcopy(judge)
    arguments = ppo_arguments(tokenizer, prompts, folder / "run", share_backbone="value")
    if architecture.refusal is not None:
        with pytest.raises(ValueError, match=architecture.refusal) as refusal:
            PPOTrainer(model=policy, reward_model=judge, **arguments)
        return f"refused: {str(refusal.value).removeprefix('PPOTrainer: ')}"
    trainer = PPOTrainer(model=policy, reward_model=judge, **arguments)
    trainer.train()
    rollout = trainer.passes.rollout
    for index, ids, _ in sequence_rows(rollout):
        with torch.no_grad():
            expected = alone(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0]
        torch.testing.assert_close(rollout.scores[index], expected, **TOLERANCE)
    return EQUAL


def run_kwise(architecture: Architecture, tokenizer: Any, rankings: Dataset, folder: Path) -> str:
    """Scores of the answers of one batch, with the prompt encoded once and with every answer apart."""
    config = make_config(architecture, tokenizer)
    if make_classifier(config, folder / "judge") is None:
        return "no sequence classification model"
    found = {}
    for shares in (False, True):
        model = AutoModelForSequenceClassification.from_pretrained(folder / "judge", num_labels=1)
        args = KWiseRewardConfig(
            output_dir=str(folder / f"kwise-{shares}"), per_device_train_batch_size=4, max_steps=1, max_length=150,
            prefix_sharing=shares, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no",
            activation_checkpointing=False,
        )  # fmt: skip
        try:
            trainer = KWiseRewardTrainer(model=model, args=args, train_dataset=rankings, processing_class=tokenizer)
        except ValueError as error:
            if not shares and not (architecture.is_encoder and re.search(architecture.refusal or "(?!)", str(error))):
                raise
            return f"refused: {str(error).removeprefix('prefix_sharing: ').removeprefix('KWiseRewardTrainer: ')}"
        trainer.model.eval()
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
        with torch.no_grad():
            found[shares] = trainer.score_answers(trainer.model, batch)
    mask = found[False] != 0
    torch.testing.assert_close(found[True][mask], found[False][mask], **TOLERANCE)
    return EQUAL


def run_lora(architecture: Architecture, tokenizer: Any) -> str:
    """What the recipes' default reaches; every place of it gets a gradient."""
    if architecture.is_encoder and architecture.refusal is not None:
        return NOT_TRIED
    config = make_config(architecture, tokenizer)
    auto_class = AutoModelForSequenceClassification if architecture.is_encoder else language_model_class(config)
    torch.manual_seed(1)
    model = auto_class.from_config(config)
    lora = LoraConfig(r=2, task_type="SEQ_CLS" if architecture.is_encoder else "CAUSAL_LM")
    resolve_lora_targets(lora, model)
    missed = check_lora_targets(lora, model)
    adapted = get_peft_model(model, lora)
    ids = torch.arange(10, 22).unsqueeze(0)
    adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().square().sum().backward()
    idle = [n for n, p in adapted.named_parameters() if "lora_B" in n and p.requires_grad and p.grad is None]
    assert not idle, f"no gradient: {idle}"
    places = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    reached = [part for part in ("attention", "MLP") if any(_is_in(part, name) for name in places)]
    return ", ".join(reached) + (f"; not {', '.join(missed)}" if missed else "")


def _is_in(part: str, name: str) -> bool:
    words = dict(
        attention=("attn", "attention", "mamba", "mixer.in_proj", "mixer.out_proj", ".conv.", "temporal_block"),
        MLP=("mlp", "ffn", "feed_forward", "fc1", "fc2", "dense", "lin1", "lin2", "mixer", "shared_expert"),
    )
    name = name.lower()
    is_attention = any(word in name for word in words["attention"])
    return is_attention if part == "attention" else not is_attention and any(word in name for word in words["MLP"])
