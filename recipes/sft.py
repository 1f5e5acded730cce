"""Supervised fine-tuning of a causal language model with TRL's SFTTrainer, full or LoRA.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sft.py --config recipes/demo/sft.yaml

The loss covers what the assistant says in the completion, with the end of each turn; what a user or a tool says inside
a completion of several messages is not learnt. With `assistant_only_loss: true` and `completion_only_loss: false` the
assistant's turns in the prompt are learnt as well; with `completion_only_loss: false` alone, every token. Prompt and
completion are encoded apart, as reward model and PPO encode them, so that all stages see the same ids.

`model_name_or_path` may be the folder of an adapter: it is merged into its base model first. With `use_peft` a new
adapter is learnt on the merged model, which is kept as `output_dir/base`: the new adapter belongs to that.
"""

from pathlib import Path

from accelerate import PartialState
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import ModelConfig, SFTConfig, SFTTrainer

import pangu_trl  # noqa: F401  (registers GPTPangu)
from pangu_trl.data import tokenize_demonstrations
from pangu_trl.data.answer_end import note_stop_tokens
from pangu_trl.data.arguments import DataArguments
from pangu_trl.models.modes import sequence_limit
from pangu_trl.runs.arguments import RunArguments
from pangu_trl.runs.process import run_recipe
from pangu_trl.runs.start import claim_output_dir, finish, guard, load_start, parse_options, train
from pangu_trl.runs.streaming import order_seed, report_streams, resolve_stream


def main() -> None:
    data_args, run_args, training_args, model_args = parse_options(DataArguments, RunArguments, SFTConfig, ModelConfig)
    checkpoint = claim_output_dir(training_args.output_dir, training_args.resume_from_checkpoint)
    learns_prompt_turns = choose_loss(training_args)
    if data_args.dataset_streaming:
        resolve_stream(training_args, "SFT")

    records = data_args.load("demonstration", order_seed(training_args))
    start = load_start(AutoModelForCausalLM, model_args, training_args)
    prepare_tokenizer(start.tokenizer, training_args)
    note_stop_tokens(start.model, start.tokenizer)
    max_length = sequence_limit(start.model, training_args.max_length)
    with PartialState().local_main_process_first():
        train_dataset, eval_dataset = (
            None
            if part is None
            else tokenize_demonstrations(
                part, start.tokenizer, max_length, training_args.dataset_num_proc, learns_prompt_turns
            )
            for part in records
        )
    trainer = SFTTrainer(
        model=start.model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=start.tokenizer,
        peft_config=start.peft_config,
    )
    report_streams(trainer, train_dataset)
    guard(trainer, data_args, run_args, model_args)
    train(trainer, checkpoint)
    finish(trainer)


def choose_loss(training_args: SFTConfig) -> bool:
    """Settles what is learnt, and returns whether that is the assistant's turns of the prompts too.

    TRL takes `assistant_only_loss` for conversations that it encodes itself; our mask has the same effect.
    """
    learns_prompt_turns = training_args.assistant_only_loss and training_args.completion_only_loss is False
    if training_args.completion_only_loss is None or learns_prompt_turns:
        training_args.completion_only_loss = True
    training_args.assistant_only_loss = False
    return learns_prompt_turns


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, training_args: SFTConfig) -> None:
    """Applies the end token and the chat template of the options, which TRL does only after we have encoded.

    Raises:
        ValueError: The vocabulary lacks the token, or the template is no file.
    """
    if training_args.eos_token is not None:
        if training_args.eos_token not in tokenizer.get_vocab():
            raise ValueError(f"eos_token {training_args.eos_token!r} is not in the tokenizer's vocabulary.")
        tokenizer.eos_token = training_args.eos_token
    if training_args.chat_template_path is not None:
        template = Path(training_args.chat_template_path)
        if not template.is_file() or template.suffix not in (".jinja", ".j2"):
            raise ValueError(
                f"chat_template_path {template} must be a .jinja or .j2 file; to take over another tokenizer's "
                "template and tokens, save them with the model that you start from."
            )
        tokenizer.chat_template = template.read_text("utf-8")


if __name__ == "__main__":
    run_recipe(main)
