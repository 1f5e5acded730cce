"""The options of a recipe: a YAML file and the command line, read strictly."""

import os
from dataclasses import fields
from typing import Any, NoReturn

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
            self.set_defaults_with_config(**given.settings)
        return self.parse_args_into_dataclasses(args=given.words, look_for_args_file=False)
