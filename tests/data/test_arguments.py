"""What the recipes take as data."""

import pytest
import yaml

from pangu_trl.data.arguments import DataArguments
from pangu_trl.runs.start import parse_options


@pytest.mark.parametrize("name", ["train_data", "eval_data"])
def test_a_list_of_files_in_a_yaml_file_is_refused_by_the_name_of_the_option(tmp_path, name):
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump({"train_data": "a.jsonl", name: ["a.jsonl", "b.jsonl"]}))
    with pytest.raises(ValueError, match=rf"{name} must be one source: .*; got \['a.jsonl', 'b.jsonl'\]"):
        parse_options(DataArguments, argv=["--config", str(config)])


def test_training_data_are_required():
    with pytest.raises(ValueError, match="train_data is required: a file of records"):
        DataArguments()
