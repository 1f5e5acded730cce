"""PPO of a fine-tuned language model against a reward model with PPOTrainer, full or LoRA.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/ppo.py --config recipes/demo/ppo.yaml

The critic, if `advantage_estimator` needs one, starts as a second copy of the reward model; the reference is the policy
before the first step.

`model_name_or_path`, `reward_model` and `value_model` may be folders of adapters: each is merged into its base model
first. With `use_peft` a new adapter is learnt on the merged policy, which is kept as `output_dir/base`: the new adapter
belongs to that.

A reward may also be a Python function, `path/to/file.py:function`, or a service, `http://HOST:PORT/PATH`
(recipes/reward_server.py is one); several are a list.

With `share_backbone: all` (and `use_peft`) only the policy's base model is loaded: `reward_model` is the folder of a
reward adapter that was trained on it, and is not merged.

With `use_peft` the policy's base may be quantised, `load_in_4bit` or `load_in_8bit`; so may the one of ONE backbone.
Reward models and critics with a backbone of their own are loaded as they are.
"""

import logging
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from pangu_trl import PPOConfig, PPOTrainer
from pangu_trl.answers.judge import load_reward_function, names_function
from pangu_trl.answers.reward_service import RewardService, is_url
from pangu_trl.data.arguments import DataArguments
from pangu_trl.models.loading import load_merged
from pangu_trl.models.reward_model import load_reward_model
from pangu_trl.reward.card import check_reward_card, read_reward_card
from pangu_trl.runs.arguments import PPOModelArguments, RunArguments
from pangu_trl.runs.process import run_recipe
from pangu_trl.runs.start import (
    check_quantisation,
    claim_output_dir,
    finish,
    guard,
    load_start,
    loading_options,
    parse_options,
    train,
)
from pangu_trl.runs.streaming import order_seed, resolve_stream

logger = logging.getLogger(__name__)

logger = logging.getLogger(__name__)


def main() -> None:
    data_args, reward_args, run_args, training_args, model_args = parse_options(
        DataArguments, PPOModelArguments, RunArguments, PPOConfig, ModelConfig
    )
    check_quantisation(model_args)
    if training_args.share_backbone == "all" and not model_args.use_peft:
        raise ValueError(
            "share_backbone=all needs use_peft: policy, critic and reward model are adapters of one base model. Set "
            "use_peft: true, or share_backbone: none."
        )
    if not reward_args.ptx_data and training_args.ptx_coef != PPOConfig.ptx_coef:
        logger.warning("ptx_coef %g has no effect without ptx_data.", training_args.ptx_coef)
    checkpoint = claim_output_dir(training_args.output_dir, training_args.resume_from_checkpoint)

    if data_args.dataset_streaming:
        resolve_stream(training_args, "PPO")

    seed = order_seed(training_args)
    train_dataset, eval_dataset = data_args.load("prompt", seed)
    ptx_dataset = None
    if reward_args.ptx_data:
        ptx_dataset = data_args.load_training(reward_args.ptx_data, reward_args.ptx_kind, "train", seed=seed)
    rewards, value_model = load_rewards(reward_args, training_args, loading_options(model_args))
    start = load_start(AutoModelForCausalLM, model_args, training_args)
    for name, reward in rewards.items():
        if isinstance(reward, PreTrainedModel | str):
            trust_reward_model(name, reward, start.tokenizer)
    reference = None
    if start.peft_config is None and (training_args.has_kl_penalty or eval_dataset is not None):
        reference = load_start(AutoModelForCausalLM, model_args, training_args).model
    trainer = PPOTrainer(
        model=start.model,
        args=training_args,
        reward_model=list(rewards.values()),
        value_model=value_model,
        ref_model=reference,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        ptx_dataset=ptx_dataset,
        processing_class=start.tokenizer,
        peft_config=start.peft_config,
    )
    guard(trainer, data_args, reward_args, run_args, model_args)
    train(trainer, checkpoint)
    finish(trainer)


def load_rewards(
    reward_args: PPOModelArguments, training_args: PPOConfig, loading: dict[str, Any]
) -> tuple[dict[str, Any], PreTrainedModel | None]:
    """Loads the rewards, by name, and the model that the critic starts from, if layout and estimator need one."""
    share_backbone, estimator = training_args.share_backbone, training_args.advantage_estimator
    if reward_args.value_model is not None and not training_args.has_critic:
        logger.warning("advantage_estimator=%r has no critic; value_model is not loaded.", estimator)
    elif reward_args.value_model is not None and share_backbone != "none":
        raise ValueError(f"value_model has no effect with share_backbone={share_backbone}; leave it out.")
    models = [name for name in reward_args.rewards if not is_url(name) and not names_function(name)]
    # An adapter of the policy's own backbone is read by the trainer.
    on_backbone = models[:1] if share_backbone == "all" else []
    rewards: dict[str, Any] = {}
    for name in reward_args.rewards:
        if name in on_backbone:
            rewards[name] = name
        elif name in models:
            rewards[name], _ = load_reward_model(name, load_merged, **loading)
        elif is_url(name):
            service = RewardService(name, reward_args.reward_service_timeout, reward_args.reward_service_retries)
            rewards[name] = service
        else:
            rewards[name] = load_reward_function(name)
    start = reward_args.value_model or next(iter(models), None)
    if share_backbone != "none" or not training_args.has_critic or start is None:
        return rewards, None
    value_model, _ = load_reward_model(start, load_merged, **loading)
    return rewards, value_model


def trust_reward_model(name: str, reward_model: PreTrainedModel | str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Reads the card that reward training left beside its model, if it did.

    The policy's tokens must mean to the reward model what they meant in its training; its mean score and standard
    deviation go where `reward_scaling: stored` looks for them.

    Raises:
        ValueError: The tokenizers differ; the message names every difference.
    """
    card = read_reward_card(name)
    if card is None:
        return
    check_reward_card(card, tokenizer, "model_name_or_path")
    if card.score_std is not None and isinstance(reward_model, PreTrainedModel):
        reward_model.config.reward_mean, reward_model.config.reward_std = card.score_mean, card.score_std


if __name__ == "__main__":
    run_recipe(main)
