"""What someone does who has transformers and peft, but not pangu_trl. Called in the process of the fixture `reader`."""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import peft
import torch
import transformers


def import_pangu_trl() -> str:
    """Says why pangu_trl cannot be imported; the modules of the package, too."""
    reasons = []
    for name in ("pangu_trl", "pangu_trl.gptpangu.modeling_gptpangu"):
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            reasons.append(str(error))
    return "; ".join(reasons)


def load(source: str | Path, auto_class: str, trust: bool = True, **options: Any) -> Any:
    return getattr(transformers, auto_class).from_pretrained(str(source), trust_remote_code=trust, **options)


def class_of(source: str | Path, auto_class: str, trust: bool = True) -> tuple[str, str]:
    """Package and name of the class that an Auto class loads."""
    loaded = type(load(source, auto_class, trust))
    return loaded.__module__.partition(".")[0], loaded.__name__


def outputs(source: str | Path, auto_class: str, ids: list[list[int]], **options: Any) -> torch.Tensor:
    """Logits (or hidden states of a model without a head) for a batch without padding."""
    model = load(source, auto_class, **options).eval()
    with torch.no_grad():
        return model(torch.tensor(ids))[0]


def generate(source: str | Path, ids: list[list[int]], **options: Any) -> list[list[int]]:
    model = load(source, "AutoModelForCausalLM").eval()
    return model.generate(torch.tensor(ids), **options).tolist()


def tokenize(source: str | Path, text: str) -> list[int]:
    return load(source, "AutoTokenizer")(text)["input_ids"]


def save_again(source: str | Path, folder: Path) -> None:
    """Saves what custom code loaded, as after a training without pangu_trl."""
    load(source, "AutoModelForCausalLM").save_pretrained(folder)
    load(source, "AutoTokenizer").save_pretrained(folder)


def adapter_outputs(base: str, adapter: str, auto_class: str, ids: list[list[int]], **options: Any) -> torch.Tensor:
    model = peft.PeftModel.from_pretrained(load(base, auto_class, **options), adapter).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids))[0]


def error_of(source: str | Path, auto_class: str, **options: Any) -> tuple[str, str]:
    """Type and message of the OSError or ValueError that loading ends with."""
    try:
        load(source, auto_class, **options)
    except (OSError, ValueError) as error:
        return type(error).__name__, str(error)
    return "", ""


def run_example(card: str, number: int = -1) -> dict[str, Any]:
    """Runs one of the Python blocks of a model card; what it names `score` comes back."""
    block = card.split("```python\n")[1:][number].partition("```")[0]
    names: dict[str, Any] = {}
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(block, names)
    return {name: names[name] for name in ("score",) if name in names} | {"model": type(names.get("model")).__name__}
