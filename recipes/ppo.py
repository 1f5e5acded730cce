"""PPO of a fine-tuned language model against a reward model with PPOTrainer, full or LoRA.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/ppo.py --config recipes/demo/ppo.yaml

The critic starts as a second copy of the reward model; the reference is the policy before the first step.
"""

from dataclasses import dataclass, field

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig, get_peft_config

from pangu_trl import PPOConfig, PPOTrainer
from pangu_trl.data.arguments import DataArguments
from pangu_trl.recipe import claim_output_dir, parse_options


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
    checkpoint = claim_output_dir(training_args.output_dir, training_args.resume_from_checkpoint)
    loading = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}

    train_dataset, eval_dataset = data_args.load("prompt")
    policy = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, **loading)
    peft_config = get_peft_config(model_args)
    reference = None
    if peft_config is None:
        reference = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, **loading)
    reward_model, value_model = (
        AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, **loading)
        for name in (reward_args.reward_model, reward_args.value_model or reward_args.reward_model)
    )
    trainer = PPOTrainer(
        model=policy,
        args=training_args,
        reward_model=reward_model,
        value_model=value_model,
        ref_model=reference,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=AutoTokenizer.from_pretrained(model_args.model_name_or_path),
        peft_config=peft_config,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
