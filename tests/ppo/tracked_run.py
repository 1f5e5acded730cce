"""A short PPO run with one tracker, writing below where it is: `python tracked_run.py MODELS TRACKER OUTPUT`."""

import json
import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer

from pangu_trl import GPTPanguForCausalLM, GPTPanguForSequenceClassification, PPOConfig, PPOTrainer


def main() -> None:
    models, tracker, output = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    prompts = Dataset.from_list(json.loads((models / "prompts.json").read_text("utf-8")))
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=output,
            report_to=[tracker],
            project="tracked",
            log_completions=True,
            eval_strategy="steps",
            eval_steps=2,
            max_steps=4,
            logging_steps=1,
            per_device_train_batch_size=2,
            num_rollout_batches=2,
            num_ppo_epochs=2,
            max_prompt_length=48,
            max_completion_length=8,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        model=GPTPanguForCausalLM.from_pretrained(models / "policy"),
        reward_model=GPTPanguForSequenceClassification.from_pretrained(models / "reward_model"),
        train_dataset=prompts,
        eval_dataset=prompts,
        processing_class=AutoTokenizer.from_pretrained(models / "tokenizer"),
    )
    trainer.train()
    Path(output, "history.json").write_text(json.dumps(trainer.state.log_history), "utf-8")


if __name__ == "__main__":
    main()
