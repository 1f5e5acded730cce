"""The options of a recipe: a YAML file and the command line, read strictly."""

import os
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from trl import TrlParser

from .given_options import read_given_options


class StrictParser(TrlParser):
    """TrlParser that reads UTF-8 in every locale, guesses nothing, and has errors instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """What argparse calls on a wrong command line."""
        raise ValueError(message)

    def read(self, words: list[str]) -> tuple[Any, ...]:
        """The dataclasses of a command line, which may name a file with `--config`.

        Raises:
            ValueError: An option is unknown, stands twice or has a value that it cannot have; or no output_dir is
                given.
            OSError: The file cannot be read.
        """
        given = read_given_options(
            words, [option.name for options in self.dataclass_types for option in fields(options) if option.init]
        )
        os.environ.update(given.environment)
        if given.path is not None:
            self._check_words(given.settings, given.path)
            self.set_defaults_with_config(**given.settings)
        return self.parse_args_into_dataclasses(args=given.words, look_for_args_file=False)

    def _check_words(self, settings: dict[str, Any], path: Path) -> None:
        """Checks what argparse takes from a file unseen: options that must be one of several words."""
        for options in self.dataclass_types:
            hints = get_type_hints(options)
            for option in fields(options):
                name, value = option.name, settings.get(option.name)
                choices = option.metadata.get("choices")
                if choices and isinstance(value, str) and value not in choices:
                    raise ValueError(f"{path}: {name} must be one of {', '.join(map(str, choices))}; got {value!r}.")
                # Whose own error would not say where the truth value comes from.
                is_word = any(isinstance(kind, type) and issubclass(kind, Enum) for kind in get_args(hints[name]))
                if is_word and isinstance(value, bool):
                    raise ValueError(
                        f"{path}: {name} is {str(value).lower()}, as YAML reads no, off, yes and on without "
                        f'quotes; write the word in quotes, as in {name}: "no".'
                    )
