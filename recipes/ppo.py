"""PPO of a fine-tuned language model against a reward model with PPOTrainer, full or LoRA.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/ppo.py --config recipes/demo/ppo.yaml

The critic starts as a second copy of the reward model; the reference is the policy before the first step.

`model_name_or_path`, `reward_model` and `value_model` may be folders of adapters: each is merged into its base model
first. With `use_peft` a new adapter is learnt on the merged policy, which is kept as `output_dir/base`: the new adapter
belongs to that.

With `share_backbone: all` (and `use_peft`) only the policy's base model is loaded: `reward_model` is the folder of a
reward adapter that was trained on it, and is not merged.
"""

from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from pangu_trl import PPOConfig, PPOTrainer
from pangu_trl.data.arguments import DataArguments
from pangu_trl.models.loading import load_merged
from pangu_trl.models.reward_model import load_reward_model
from pangu_trl.reward.card import check_reward_card, read_reward_card
from pangu_trl.runs.arguments import PPOModelArguments, RunArguments
from pangu_trl.runs.process import run_recipe
from pangu_trl.runs.start import claim_output_dir, finish, guard, load_start, loading_options, parse_options, train
from pangu_trl.runs.streaming import order_seed, resolve_stream


def main() -> None:
    data_args, reward_args, run_args, training_args, model_args = parse_options(
        DataArguments, PPOModelArguments, RunArguments, PPOConfig, ModelConfig
    )
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise ValueError("PPO does not train on quantised weights; leave out load_in_4bit and load_in_8bit.")
    checkpoint = claim_output_dir(training_args.output_dir, training_args.resume_from_checkpoint)

    if data_args.dataset_streaming:
        resolve_stream(training_args, "PPO")

    seed = order_seed(training_args)
    train_dataset, eval_dataset = data_args.load("prompt", seed)
    ptx_dataset = None
    if reward_args.ptx_data:
        ptx_dataset = data_args.load_training(reward_args.ptx_data, reward_args.ptx_kind, "train", seed=seed)
    reward_model, value_model = load_judges(reward_args, training_args.share_backbone, loading_options(model_args))
    start = load_start(AutoModelForCausalLM, model_args, training_args)
    trust_reward_model(reward_args.reward_model, reward_model, start.tokenizer)
    reference = None
    if start.peft_config is None:
        reference = load_start(AutoModelForCausalLM, model_args, training_args).model
    trainer = PPOTrainer(
        model=start.model,
        args=training_args,
        reward_model=reward_model,
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


def load_judges(
    reward_args: PPOModelArguments, share_backbone: str, loading: dict[str, Any]
) -> tuple[PreTrainedModel | str, PreTrainedModel | None]:
    """Loads the reward model and the model that the critic starts from, as far as the layout needs them."""
    if share_backbone != "none" and reward_args.value_model is not None:
        raise ValueError(f"value_model has no effect with share_backbone={share_backbone}; leave it out.")
    if share_backbone == "all":
        return reward_args.reward_model, None
    reward_model, _ = load_reward_model(reward_args.reward_model, load_merged, **loading)
    if share_backbone == "value":
        return reward_model, None
    value_model, _ = load_reward_model(reward_args.value_model or reward_args.reward_model, load_merged, **loading)
    return reward_model, value_model


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
