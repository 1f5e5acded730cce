"""Training of a reward model on K ranked answers with KWiseRewardTrainer, full or LoRA.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/reward.py --config recipes/demo/reward.yaml

Starts from a language model (usually the fine-tuned one), whose backbone gets a new score head, or goes on with a
trained reward model.

`model_name_or_path` may be the folder of an adapter: it is merged into its base model first. With `use_peft` a new
adapter is learnt on the merged model, which is kept as `output_dir/base`: the new adapter and its score head belong
to that.
"""

from transformers import AutoModelForSequenceClassification
from trl import ModelConfig

from pangu_trl import KWiseRewardConfig, KWiseRewardTrainer
from pangu_trl.data.arguments import DataArguments
from pangu_trl.models.modes import sequence_limit
from pangu_trl.runs.arguments import RunArguments
from pangu_trl.runs.process import run_recipe
from pangu_trl.runs.start import claim_output_dir, finish, guard, load_start, parse_options, train
from pangu_trl.runs.streaming import order_seed, resolve_stream


def main() -> None:
    data_args, run_args, training_args, model_args = parse_options(
        DataArguments, RunArguments, KWiseRewardConfig, ModelConfig
    )
    checkpoint = claim_output_dir(training_args.output_dir, training_args.resume_from_checkpoint)
    # With another task type PEFT would leave the score head untrained, without an error.
    model_args.lora_task_type = "SEQ_CLS"

    if data_args.dataset_streaming:
        resolve_stream(training_args, "reward")

    train_dataset, eval_dataset = data_args.load("ranking", order_seed(training_args))
    num_labels = len(training_args.attributes or ["reward"])
    start = load_start(
        AutoModelForSequenceClassification, model_args, training_args, new_head="score.", num_labels=num_labels
    )
    training_args.max_length = sequence_limit(start.model, training_args.max_length)
    trainer = KWiseRewardTrainer(
        model=start.model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=start.tokenizer,
        peft_config=start.peft_config,
    )
    guard(trainer, data_args, run_args, model_args)
    train(trainer, checkpoint)
    if eval_dataset is not None and not trainer.weights_are_evaluated:
        # The figures of the model that is saved; its card tells PPO mean and standard deviation of its scores.
        trainer.evaluate()
    finish(trainer)


if __name__ == "__main__":
    run_recipe(main)
