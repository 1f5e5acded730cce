"""Direct preference optimisation of a fine-tuned language model with TRL's DPOTrainer, full or LoRA.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/dpo.py --config recipes/tiny/dpo/full.yaml

Reads the rankings of the reward stage: of each prompt the best answer against the worst. Prompt and answers are encoded
apart, as in the other stages. Of answers of several messages what the assistant says is compared, with the end of each
turn, and not what a user or a tool says there.

`model_name_or_path` may be the folder of an adapter: it is merged into its base model first. The reference is the model
before the first step: with `use_peft` the same weights without the adapter, otherwise a second copy.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, ModelConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

import pangu_trl  # noqa: F401  (registers GPTPangu)
from pangu_trl.data.arguments import DataArguments
from pangu_trl.data.tokenized_datasets import tokenize_rankings
from pangu_trl.models.modes import sequence_limit
from pangu_trl.runs.arguments import RunArguments
from pangu_trl.runs.process import run_recipe
from pangu_trl.runs.start import claim_output_dir, finish, guard, load_start, parse_options, train

logger = logging.getLogger(__name__)


@dataclass
class TurnsCollator(DataCollatorForPreference):
    """TRL's batches of pairs, in which only what the assistant says counts."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """As TRL's, with `completion_mask` from `chosen_mask` and `rejected_mask`; nothing is cut, pairs fit."""
        batch = super().torch_call(examples)
        spoken = [example[name] for name in ("chosen_mask", "rejected_mask") for example in examples]
        for row, mask in enumerate(spoken):
            is_answer = batch["completion_mask"][row].bool()
            batch["completion_mask"][row, is_answer] = torch.tensor(mask)
        return batch


class EncodedPairsTrainer(DPOTrainer):
    """DPOTrainer on pairs that are encoded already; TRL's own encoding joins prompt and answer first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = TurnsCollator(**vars(self.data_collator))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, "chosen_mask", "rejected_mask"]

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
    encoded = tokenize_rankings(rankings, tokenizer, max_length, num_proc=num_proc, marks_turns=True)
    ordered = encoded.filter(lambda row: max(row["scores"]) > min(row["scores"]), num_proc=num_proc)
    if len(ordered) == 0:
        raise ValueError(f"none of {len(encoded)} rankings has a better and a worse answer; DPO learns from pairs.")
    if len(ordered) < len(encoded):
        logger.warning("Left out %d of %d rankings whose answers all tie.", len(encoded) - len(ordered), len(encoded))
    return ordered.map(_best_and_worst, remove_columns=ordered.column_names, num_proc=num_proc)


def _best_and_worst(row: dict[str, Any]) -> dict[str, list[int]]:
    scores, responses, masks = row["scores"], row["response_input_ids"], row["response_masks"]
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    return {
        "prompt_ids": row["prompt_input_ids"],
        "chosen_ids": responses[best],
        "rejected_ids": responses[worst],
        "chosen_mask": masks[best],
        "rejected_mask": masks[worst],
    }


if __name__ == "__main__":
    run_recipe(main)
