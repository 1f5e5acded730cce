"""A text task of two steps whose optimum is known, and a tiny trainer on it.

Three words and an end. At first "b" is as good as "a" on average, and safer; but the best answer is "a c": a learner
that gives the first step no credit for what the second one can make of it stays below.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from pangu_trl import PPOConfig, PPOTrainer

WORDS = ["<pad>", "<eos>", "go", "a", "b", "c"]
REWARDS = {"a c": 1.0, "b a": 0.3, "b b": 0.3, "b c": 0.3}


def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [REWARDS.get(completion.strip(), 0.0) for completion in completions]


def make_bandit(folder: Path, reward: Any = reward, **options: Any) -> PPOTrainer:
    """A trainer on the task; options change its configuration."""
    torch.manual_seed(0)
    settings = dict(
        output_dir=str(folder),
        per_device_train_batch_size=64,
        generation_batch_size=64,
        num_generations=8,
        num_ppo_epochs=4,
        max_prompt_length=1,
        max_completion_length=2,
        max_steps=40,
        learning_rate=3e-2,
        kl_coef=0.0,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_steps=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    args = PPOConfig(**settings | options)
    return PPOTrainer(
        model=GPT2LMHeadModel(_config()),
        args=args,
        reward_model=reward,
        value_model=GPT2ForSequenceClassification(_config(num_labels=1)) if args.has_critic else None,
        train_dataset=Dataset.from_list([{"prompt": "go"}] * 64),
        processing_class=_tokenizer(),
    )


def probability_of_the_best(trainer: PPOTrainer) -> float:
    """Of "a c" under the policy, exactly."""
    ids = torch.tensor([[WORDS.index(word) for word in ("go", "a", "c")]])
    with torch.no_grad():
        logprobs = trainer.model.policy(ids).logits.log_softmax(-1)[0, :-1]
    return logprobs.gather(-1, ids[0, 1:, None]).sum().exp().item()


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def _config(**options: Any) -> GPT2Config:
    size = dict(n_embd=16, n_layer=1, n_head=1, n_positions=8, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2Config(vocab_size=len(WORDS), bos_token_id=None, eos_token_id=1, pad_token_id=0, **size, **options)
