"""What a trainer pushes to the Hub while it trains: not its pickled options, with their paths and access token."""

import functools
from collections.abc import Callable
from typing import Any

from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils.hub import hf_api


def keep_options_private(trainer: Trainer) -> None:
    """Has a trainer leave `training_args.bin` out of everything that it pushes; a second call changes nothing.

    Nothing ever reads that file. The rest is pushed unread: `pangu-trl publish` is what searches it first.

    Args:
        trainer: Any trainer.
    """
    if "push_to_hub" not in vars(trainer):
        trainer.push_to_hub = _without_options(trainer.push_to_hub)
        trainer._push_from_checkpoint = _without_options(trainer._push_from_checkpoint)


def _without_options(push: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(push)
    def push_the_rest(*args: Any, **kwargs: Any) -> Any:
        # The client that the Trainer uploads by; it is given back before anybody else can ask for it.
        api = hf_api()
        upload_folder = api.upload_folder

        def upload_the_rest(*args: Any, ignore_patterns: list[str] | None = None, **kwargs: Any) -> Any:
            return upload_folder(*args, ignore_patterns=[*(ignore_patterns or ()), f"*{TRAINING_ARGS_NAME}"], **kwargs)

        api.upload_folder = upload_the_rest
        try:
            return push(*args, **kwargs)
        finally:
            del api.upload_folder

    return push_the_rest
