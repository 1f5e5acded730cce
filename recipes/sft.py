"""Supervised fine-tuning of a causal language model with TRL's SFTTrainer, full or LoRA.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sft.py --config recipes/demo/sft.yaml

The loss covers the completion and its end token. Prompt and completion are encoded apart, as reward model and PPO
encode them, so that all stages see the same ids.
"""

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

import pangu_trl  # noqa: F401  (registers GPTPangu)
from pangu_trl.data import tokenize_demonstrations
from pangu_trl.data.arguments import DataArguments
from pangu_trl.recipe import claim_output_dir, parse_options


def main() -> None:
    data_args, training_args, model_args = parse_options(DataArguments, SFTConfig, ModelConfig)
    checkpoint = claim_output_dir(training_args.output_dir, training_args.resume_from_checkpoint)
    training_args.completion_only_loss = True

    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    datasets = [
        None
        if records is None
        else tokenize_demonstrations(
            records, tokenizer, training_args.max_length, num_proc=training_args.dataset_num_proc
        )
        for records in data_args.load("demonstration")
    ]
    model = AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
    )
    trainer = SFTTrainer(
        model=model,
        args=training_args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1],
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
