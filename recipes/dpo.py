"""Direct preference optimisation of a fine-tuned language model with TRL's DPOTrainer, full or LoRA.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/dpo.py --config recipes/tiny/dpo/full.yaml

Reads the rankings of the reward stage: of each prompt the best answer against the worst. Prompt and answers are encoded
apart, as in the other stages.

`model_name_or_path` may be the folder of an adapter: it is merged into its base model first. The reference is the model
before the first step: with `use_peft` the same weights without the adapter, otherwise a second copy.
"""

import logging
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, ModelConfig

import pangu_trl  # noqa: F401  (registers GPTPangu)
from pangu_trl.data.arguments import DataArguments
from pangu_trl.data.tokenized_datasets import tokenize_rankings
from pangu_trl.models.modes import sequence_limit
from pangu_trl.runs.arguments import RunArguments
from pangu_trl.runs.process import run_recipe
from pangu_trl.runs.start import claim_output_dir, finish, guard, load_start, parse_options, train

logger = logging.getLogger(__name__)


class EncodedPairsTrainer(DPOTrainer):
    """DPOTrainer on pairs that are encoded already; TRL's own encoding joins prompt and answer first."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def main() -> None:
    data_args, run_args, training_args, model_args = parse_options(DataArguments, RunArguments, DPOConfig, ModelConfig)
    data_args.refuse_streaming("DPO")
    checkpoint = claim_output_dir(training_args.output_dir, training_args.resume_from_checkpoint)

    rankings = data_args.load("ranking")
    start = load_start(AutoModelForCausalLM, model_args, training_args)
    reference = None
    if start.peft_config is None:
        reference = load_start(AutoModelForCausalLM, model_args, training_args).model
    max_length = sequence_limit(start.model, training_args.max_length)
    with PartialState().local_main_process_first():
        train_dataset, eval_dataset = (
            None if part is None else encode_pairs(part, start.tokenizer, max_length, training_args.dataset_num_proc)
            for part in rankings
        )
    trainer = EncodedPairsTrainer(
        model=start.model,
        ref_model=reference,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=start.tokenizer,
        peft_config=start.peft_config,
    )
    guard(trainer, data_args, run_args, model_args)
    train(trainer, checkpoint)
    finish(trainer)


def encode_pairs(
    rankings: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, num_proc: int | None = None
) -> Dataset:
    """Token ids of prompt, best and worst answer of every ranking whose answers are not all equally good.

    Raises:
        ValueError: No ranking has a better and a worse answer.
    """
    encoded = tokenize_rankings(rankings, tokenizer, max_length, num_proc=num_proc)
    ordered = encoded.filter(lambda row: max(row["scores"]) > min(row["scores"]), num_proc=num_proc)
    if len(ordered) == 0:
        raise ValueError(f"none of {len(encoded)} rankings has a better and a worse answer; DPO learns from pairs.")
    if len(ordered) < len(encoded):
        logger.warning("Left out %d of %d rankings whose answers all tie.", len(encoded) - len(ordered), len(encoded))
    return ordered.map(_best_and_worst, remove_columns=ordered.column_names, num_proc=num_proc)


def _best_and_worst(row: dict[str, Any]) -> dict[str, list[int]]:
    scores, responses = row["scores"], row["response_input_ids"]
    return {
        "prompt_ids": row["prompt_input_ids"],
        "chosen_ids": responses[scores.index(max(scores))],
        "rejected_ids": responses[scores.index(min(scores))],
    }


if __name__ == "__main__":
    run_recipe(main)
