"""What the owner of a model does, with pangu_trl installed. Called in the process of the fixture `author`."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
import transformers
from datasets import Dataset, load_dataset
from huggingface_hub import CommitOperationAdd, HfApi

import pangu_trl
from pangu_trl import cli

CLASSES = {
    "AutoConfig": pangu_trl.GPTPanguConfig,
    "AutoModelForCausalLM": pangu_trl.GPTPanguForCausalLM,
    "AutoTokenizer": pangu_trl.GPTPanguTokenizer,
}


@contextlib.contextmanager
def _registered():
    """The classes are saved with their code while the context lasts."""
    for auto_class, cls in CLASSES.items():
        cls.register_for_auto_class(auto_class)
    try:
        yield
    finally:
        for cls in CLASSES.values():
            cls._auto_class = None


def save_registered(source: Path, folder: Path) -> None:
    with _registered():
        pangu_trl.GPTPanguForCausalLM.from_pretrained(source).save_pretrained(folder)
        pangu_trl.GPTPanguTokenizer.from_pretrained(source).save_pretrained(folder)


def push_registered(source: Path, repo_id: str) -> None:
    with _registered():
        pangu_trl.GPTPanguForCausalLM.from_pretrained(source).push_to_hub(repo_id)
        pangu_trl.GPTPanguTokenizer.from_pretrained(source).push_to_hub(repo_id)


def push(source: Path, auto_class: str, repo_id: str, **options: Any) -> None:
    getattr(transformers, auto_class).from_pretrained(source).push_to_hub(repo_id, **options)


def push_adapter(base: str, auto_class: str, adapter: Path, repo_id: str, **options: Any) -> None:
    model = getattr(transformers, auto_class).from_pretrained(base, **options)
    peft.PeftModel.from_pretrained(model, adapter).push_to_hub(repo_id)


def outputs(source: str | Path, auto_class: str, ids: list[list[int]], **options: Any) -> torch.Tensor:
    model = getattr(transformers, auto_class).from_pretrained(source, **options).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids))[0]


def adapter_outputs(adapter: str, auto_class: str, ids: list[list[int]], **options: Any) -> torch.Tensor:
    from pangu_trl.models.loading import load_with_adapter

    model, _, _ = load_with_adapter(getattr(transformers, auto_class), adapter, **options)
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids))[0]


def tokenize(source: str | Path, text: str) -> list[int]:
    return transformers.AutoTokenizer.from_pretrained(source)(text)["input_ids"]


def upload(repo_id: str, names: list[str]) -> None:
    """Puts files with a byte in them into a repository of one's own."""
    api = HfApi()
    api.create_repo(repo_id)
    api.create_commit(repo_id, [CommitOperationAdd(name, b"x") for name in names], commit_message="files")


def run_command(*words: str | Path) -> tuple[int, str, str]:
    """Exit code, output and errors of a `pangu-trl` command."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = cli.main([str(word) for word in words])
    return code, output.getvalue(), errors.getvalue()


def run_command_without_token(*words: str | Path) -> tuple[int, str, str]:
    with mock.patch.dict(os.environ):
        del os.environ["HF_TOKEN"]
        return run_command(*words)


def run_command_without_hub(*words: str | Path) -> tuple[int, str, str]:
    # Nothing listens on port 9 ("discard").
    with mock.patch("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9"):
        return run_command(*words)


def train_reward_model(
    model: Path, rankings: list[dict[str, Any]], output_dir: Path, repo_id: str, **options: Any
) -> list[str]:
    """Two steps that push to the hub; returns the files that the trainer left in its folder."""
    args = pangu_trl.KWiseRewardConfig(
        str(output_dir),
        push_to_hub=True,
        hub_model_id=repo_id,
        max_steps=2,
        per_device_train_batch_size=2,
        save_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        **options,
    )
    trainer = pangu_trl.KWiseRewardTrainer(
        model=transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=1),
        args=args,
        train_dataset=Dataset.from_list(rankings),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    trainer.push_to_hub()
    trainer.save_model()
    return sorted(path.name for path in output_dir.iterdir())


def round_trip_dataset(records: list[dict[str, Any]], repo_id: str) -> list[dict[str, Any]]:
    Dataset.from_list(records).push_to_hub(repo_id)
    return list(load_dataset(repo_id, split="train"))
