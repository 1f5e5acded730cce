"""Group relative policy optimisation of a language model with TRL's GRPOTrainer, full or LoRA.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo.py --config recipes/tiny/grpo/full.yaml

The reward is a trained reward model or a Python function `f(prompts, completions, **columns) -> list[float]`, as for
`pangu-trl score`, and gets answers in the same form, without the token that ended them. A reward model encodes prompt
and answer as it was trained, with the end token; TRL's own use of a model as reward would leave that out. Every process
holds the whole reward model, under ZeRO-3 too, in the `dtype` of the recipe.

`model_name_or_path` may be the folder of an adapter: it is merged into its base model first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, TrainingArguments
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    deepspeed_config,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)
from trl import GRPOConfig, GRPOTrainer, ModelConfig

import pangu_trl  # noqa: F401  (registers GPTPangu)
from pangu_trl.answers.judge import load_judge
from pangu_trl.answers.python_scores import check_columns
from pangu_trl.data.answer_end import sampled_text, stop_tokens
from pangu_trl.data.arguments import DataArguments
from pangu_trl.data.records import answer_as
from pangu_trl.models.loading import find_base_model
from pangu_trl.runs.arguments import JudgeArguments, RunArguments
from pangu_trl.runs.process import run_recipe
from pangu_trl.runs.start import claim_output_dir, finish, guard, load_start, loading_options, parse_options, train

# Columns that GRPOTrainer does not hand to rewards, or puts something of its own in.
TAKEN_BY_TRL = ("completion", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")


def main() -> None:
    data_args, reward_args, run_args, training_args, model_args = parse_options(
        DataArguments, JudgeArguments, RunArguments, GRPOConfig, ModelConfig
    )
    checkpoint = claim_output_dir(training_args.output_dir, training_args.resume_from_checkpoint)
    model_id, revision = model_args.model_name_or_path, model_args.model_revision
    if training_args.beta > 0 and not model_args.use_peft and find_base_model(model_id, revision):
        raise ValueError(
            "beta needs a reference, which TRL loads from the model's folder; "
            f"{model_id} is an adapter, whose merged weights are in no folder. Merge and save it "
            "first, set use_peft, or leave beta at 0."
        )
    train_dataset, eval_dataset = data_args.load("prompt")
    check_columns_of_rewards(train_dataset.column_names)
    with loading_whole(training_args):
        batch_size = training_args.per_device_train_batch_size
        judge = load_judge(reward_args.reward_model, batch_size, reward_args.judge_form, **loading_options(model_args))
    start = load_start(AutoModelForCausalLM, model_args, training_args)
    ends = stop_tokens(start.tokenizer, start.model.generation_config)
    trainer = GRPOTrainer(
        model=start.model,
        reward_funcs=reward_function(judge, train_dataset.column_names, start.tokenizer, ends),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=start.tokenizer,
        peft_config=start.peft_config,
    )
    guard(trainer, data_args, reward_args, run_args, model_args)
    train(trainer, checkpoint)
    finish(trainer)


def check_columns_of_rewards(column_names: list[str]) -> None:
    """Refuses data whose columns would not reach the judge as they are.

    Raises:
        ValueError: The message names the column.
    """
    check_columns(column_names)
    taken = [name for name in TAKEN_BY_TRL if name in column_names]
    if taken:
        raise ValueError(
            f"the data has the column {taken[0]!r}, which GRPOTrainer does not hand to a reward as it is; rename it."
        )


def reward_function(
    judge: Callable[..., list[float]], column_names: list[str], tokenizer: PreTrainedTokenizerBase, ends: list[int]
) -> Callable[..., list[float]]:
    """The judge as TRL calls a reward: it gets the columns of the data, and nothing of the trainer.

    The answers are decoded anew: TRL leaves an end of turn in the text where the tokenizer does not call it special.

    Args:
        judge: The judge.
        column_names: Of the data.
        tokenizer: The policy's.
        ends: Tokens that end an answer.
    """

    def reward(
        prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        own = {name: values for name, values in columns.items() if name in column_names}
        texts = [sampled_text(tokenizer, ids, ends)[0] for ids in completion_ids]
        return judge(prompts, list(map(answer_as, prompts, texts)), **own)

    return reward


@contextmanager
def loading_whole(training_args: TrainingArguments) -> Iterator[None]:
    """Loads models whole where ZeRO-3 would shard them: what computes outside of its engine finds no weights."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    config = deepspeed_config()
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        # transformers knows only as long as this object lives, which accelerate's plugin sees to.
        training_args.deepspeed_plugin.dschf = HfDeepSpeedConfig(config)


if __name__ == "__main__":
    run_recipe(main)
