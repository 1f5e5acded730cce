"""What someone does who has transformers and peft, but not pangu_trl. Called in the process of the fixture `reader`."""

import importlib
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers


def import_errors(*names: str) -> list[str]:
    """Says why each module cannot be imported."""
    reasons = []
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            reasons.append(str(error))
    return reasons


def modules_of_pangu_trl() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "pangu_trl"]


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


def run_example(card: str) -> tuple[str, float | None]:
    """Runs the last Python block of a model card; returns the class of its model, and its score if there is one."""
    block = card.split("```python\n")[-1].partition("```")[0]
    names: dict[str, Any] = {}
    exec(block, names)
    return type(names["model"]).__name__, names.get("score")
