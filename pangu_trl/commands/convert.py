"""`pangu-trl convert`: checkpoints of PanGu-alpha from and to other formats."""

import argparse
from pathlib import Path

from .options import note, positive_int

SUMMARY = "convert a PanGu-alpha checkpoint to the HF format, or back"
EXAMPLE = "pangu-trl convert --from megatron --size 2.6b --tokenizer vocabulary Pangu-alpha_2.6B_mgt pangu-2_6b"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="source_format",
        required=True,
        choices=("hf", "mindspore-numpy", "megatron", "dschat-reward", "dschat-lora"),
        help="what SRC is: hf (a folder in HF format, published or ours), mindspore-numpy (one .npy file a tensor), "
        "megatron (mp_rank_XX), dschat-reward (reward or critic model of DeepSpeed-Chat), dschat-lora (its LoRA, not "
        "merged)",
    )
    parser.add_argument(
        "--to",
        dest="target_format",
        choices=("hf", "megatron", "mindspore-numpy"),
        default="hf",
        help="what to write (default: %(default)s)",
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of the checkpoint")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to write; must not exist")
    parser.add_argument(
        "--size",
        choices=("350m", "2.6b", "13b"),
        help="the published model that this is; says what its format does not, and everything else is compared with it",
    )
    parser.add_argument(
        "--num-heads",
        type=positive_int,
        metavar="N",
        help="attention heads, which mindspore-numpy and most megatron checkpoints do not say",
    )
    parser.add_argument(
        "--vocab-size",
        type=positive_int,
        metavar="N",
        help="tokens of the vocabulary; further rows of the word embedding are padding and are cut (mindspore-numpy, "
        "megatron)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="tokenizer to put beside weights in HF format (default: the one in SRC)",
    )
    parser.add_argument(
        "--lora-scaling",
        type=float,
        metavar="X",
        help="dschat-lora: the launch argument of that name, which is divided by the rank",
    )
    lora = parser.add_mutually_exclusive_group()
    lora.add_argument("--merge", action="store_true", help="dschat-lora: add the LoRA to the weights")
    lora.add_argument(
        "--adapter", action="store_true", help="dschat-lora: write a PEFT adapter for --base-model instead of a model"
    )
    parser.add_argument(
        "--base-model",
        metavar="DIR",
        help="dschat-lora --adapter: the model that the LoRA was trained on, in HF format; must equal the frozen "
        "weights",
    )
    parser.add_argument(
        "--tensor-parallel-size", type=positive_int, default=1, metavar="N", help="ranks to write with --to megatron"
    )
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        help="largest file to write in HF format; about as much memory is needed (default: 2GB)",
    )


def run(args: argparse.Namespace) -> None:
    from pangu_trl.gptpangu.conversion import ConversionOptions, Unsaid, convert

    if args.source_format == "dschat-lora" and not (args.merge or args.adapter):
        raise ValueError("--from dschat-lora needs --merge (into the weights) or --adapter (with --base-model)")
    if args.adapter != (args.base_model is not None):
        raise ValueError("--adapter and --base-model belong together")
    if args.merge and args.source_format != "dschat-lora":
        raise ValueError("--merge belongs to --from dschat-lora")
    options = ConversionOptions(
        source_format=args.source_format,
        target_format=args.target_format,
        unsaid=Unsaid(args.size, args.num_heads, args.vocab_size),
        lora_scaling=args.lora_scaling,
        adapter_base=args.base_model,
        tokenizer=args.tokenizer,
        tensor_parallel_size=args.tensor_parallel_size,
        max_shard_size=args.max_shard_size,
    )
    for message in convert(args.source, args.destination, options):
        note(args, message)
    print(f"{args.destination}: written")
