"""PPO of a fine-tuned language model against a reward model with PPOTrainer, full or LoRA.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/ppo.py --config recipes/demo/ppo.yaml

The critic starts as a second copy of the reward model; the reference is the policy before the first step.

`model_name_or_path`, `reward_model` and `value_model` may be folders of adapters: each is merged into its base model
first. With `use_peft` a new adapter is learnt on the merged policy, which is kept as `output_dir/base`: the new adapter
belongs to that.
"""

from dataclasses import dataclass, field

from transformers import AutoModelForCausalLM
from trl import ModelConfig

from pangu_trl import PPOConfig, PPOTrainer
from pangu_trl.adapters import load_merged
from pangu_trl.data.arguments import DataArguments
from pangu_trl.recipe import claim_output_dir, finish, load_start, loading_options, parse_options
from pangu_trl.reward.scoring import load_reward_model


@dataclass
class RewardModelArguments:
    """The judge of the run."""

    reward_model: str = field(default="", metadata={"help": "Trained reward model: a folder or a Hub id."})
    value_model: str | None = field(
        default=None, metadata={"help": "Model that the critic starts from. Default: reward_model."}
    )

    def __post_init__(self) -> None:
        if not self.reward_model:
            raise ValueError("reward_model is required: the folder of a trained reward model, or its Hub id.")


def main() -> None:
    data_args, reward_args, training_args, model_args = parse_options(
        DataArguments, RewardModelArguments, PPOConfig, ModelConfig
    )
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise ValueError("PPO does not train on quantised weights; leave out load_in_4bit and load_in_8bit.")
    checkpoint = claim_output_dir(training_args.output_dir, training_args.resume_from_checkpoint)

    train_dataset, eval_dataset = data_args.load("prompt")
    loading = loading_options(model_args)
    reward_model, value_model = (
        load_reward_model(name, load_merged, **loading)[0]
        for name in (reward_args.reward_model, reward_args.value_model or reward_args.reward_model)
    )
    start = load_start(AutoModelForCausalLM, model_args, training_args)
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
        processing_class=start.tokenizer,
        peft_config=start.peft_config,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    finish(trainer)


if __name__ == "__main__":
    main()
