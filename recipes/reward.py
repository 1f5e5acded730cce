"""Training of a reward model on K ranked answers with KWiseRewardTrainer, full or LoRA.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/reward.py --config recipes/demo/reward.yaml

Starts from a language model (usually the fine-tuned one), whose backbone gets a new score head.
"""

from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig, get_peft_config

from pangu_trl import KWiseRewardConfig, KWiseRewardTrainer
from pangu_trl.data.arguments import DataArguments
from pangu_trl.recipe import claim_output_dir, parse_options


def main() -> None:
    data_args, training_args, model_args = parse_options(DataArguments, KWiseRewardConfig, ModelConfig)
    checkpoint = claim_output_dir(training_args.output_dir, training_args.resume_from_checkpoint)
    # With another task type PEFT would leave the score head untrained, without an error.
    model_args.lora_task_type = "SEQ_CLS"

    train_dataset, eval_dataset = data_args.load("ranking")
    trainer = KWiseRewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            model_args.model_name_or_path,
            num_labels=1,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
        ),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=AutoTokenizer.from_pretrained(model_args.model_name_or_path),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
