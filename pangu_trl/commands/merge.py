"""`pangu-trl merge`: an adapter added into its base model, as a plain folder."""

import argparse
from pathlib import Path

from .options import refuse_existing

SUMMARY = "add an adapter into its base model and save a plain model"
EXAMPLE = "pangu-trl merge runs/sft-lora --output runs/sft-merged"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapter", metavar="ADAPTER", help="folder or hub id of a PEFT adapter, which names its base model"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="model folder to write; must not exist"
    )


def run(args: argparse.Namespace) -> None:
    args.overwrite = False
    refuse_existing(args, is_folder=True)
    from peft import PeftConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from pangu_trl.models.loading import adapter_folder, find_base_model, load_merged

    base = find_base_model(args.adapter)
    if base is None:
        raise ValueError(f"{args.adapter}: is no adapter, so there is nothing to merge; give the folder of an adapter")
    scores = PeftConfig.from_pretrained(adapter_folder(args.adapter)).task_type == "SEQ_CLS"
    if scores:
        model, tokenizer, missing = load_merged(AutoModelForSequenceClassification, args.adapter, num_labels=1)
    else:
        model, tokenizer, missing = load_merged(AutoModelForCausalLM, args.adapter)
    if missing:
        raise ValueError(f"{args.adapter}: its files and those of {base} hold no weights for {', '.join(missing)}")
    unfinished = args.output.with_name(f"{args.output.name}.unfinished")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(args.output)
    kind = "reward model" if scores else "language model"
    print(f"{args.output}: {kind}, {args.adapter} added into {base}")
