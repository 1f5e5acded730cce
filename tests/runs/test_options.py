"""What a recipe is told: strictly read, whatever the locale."""

import os
from dataclasses import dataclass, field

import pytest
from transformers import TrainingArguments
from trl import ModelConfig

from pangu_trl.runs.start import claim_output_dir, parse_options


@dataclass
class Options:
    rate: float = field(default=1.0)
    output_dir: str = field(default="somewhere")
    resume_from_checkpoint: str | None = field(default=None)
    use_cpu: bool = field(default=False)
    bf16: bool = field(default=False)


@pytest.fixture
def read(tmp_path, monkeypatch):
    def read(content: str | bytes, *words: str) -> Options:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return parse_options(Options, argv=["--config", str(path), *words])[0]

    return read


def test_the_command_line_wins_over_the_file(read):
    assert read("rate: 2.0\noutput_dir: 运行\n", "--rate", "3") == Options(rate=3.0, output_dir="运行", use_cpu=True)


@pytest.mark.parametrize(
    "content, words, message",
    [
        ("rate: 2.0", (), "output_dir is required"),
        ("output_dir: a", ("--rat", "3"), r"there is no option rat \(did you mean rate\?\)"),
        ("output_dir: a\nrat: 3", (), r"recipe.yaml: there is no option rat \(did you mean rate\?\)"),
        ("output_dir: a", ("--rate", "3", "--rate=4"), "gives rate twice"),
        ("output_dir: a\nrate: 1\nrate: 2", (), r"recipe.yaml:3: no valid YAML: rate stands twice, in lines 2 and 3"),
        ("output_dir: a\nenv: {A: 1, A: 2}", (), r"recipe.yaml:2: no valid YAML: A stands twice"),
        ("output_dir: [a", (), r"recipe.yaml:1: no valid YAML"),
        ("output_dir: 运行".encode("gbk"), (), r"recipe.yaml:1: the file is not UTF-8 .*GBK"),
        ("- a", (), "must hold a mapping of options to values; it holds a list"),
        ("", (), "it holds nothing"),
        ("output_dir: a\nenv: 3", (), "env must be a mapping"),
        ("output_dir: a", ("--rate", "fast"), "argument --rate: invalid float value: 'fast'"),
        ("output_dir: a", ("--config", "b.yaml"), "--config stands twice"),
        ("output_dir: a", ("surplus",), "surplus"),
    ],
)
def test_what_is_wrong_is_refused_by_name(read, content, words, message):
    with pytest.raises(ValueError, match=message):
        read(content, *words)


def test_utf8_is_read_in_a_locale_of_another_encoding(read, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    monkeypatch.setattr("locale.getencoding", lambda: "ascii", raising=False)
    assert read("output_dir: 运行").output_dir == "运行"


def test_the_environment_of_a_recipe_is_set(read, monkeypatch):
    monkeypatch.setenv("PANGU_TRL_TEST", "before")
    read("output_dir: a\nenv: {PANGU_TRL_TEST: 后}")
    assert os.environ["PANGU_TRL_TEST"] == "后"


def test_true_and_false_of_yaml_resume_or_do_not(tmp_path):
    path = tmp_path / "recipe.yaml"
    for word, finds in (("true", True), ("false", False), ("null", False)):
        path.write_text(f"output_dir: {tmp_path / 'new'}\nresume_from_checkpoint: {word}\nreport_to: none\n")
        [args] = parse_options(TrainingArguments, argv=["--config", str(path)])
        if finds:
            with pytest.raises(FileNotFoundError, match="no whole checkpoint to resume from"):
                claim_output_dir(args.output_dir, args.resume_from_checkpoint)
        else:
            assert claim_output_dir(args.output_dir, args.resume_from_checkpoint) is None


@pytest.mark.parametrize(
    "content, message",
    [
        ("save_strategy: no", r'recipe.yaml: save_strategy is false, as YAML reads no, .*write .* save_strategy: "no"'),
        ("eval_strategy: on", "eval_strategy is true, as YAML reads"),
        ("lr_scheduler_type: off", "lr_scheduler_type is false"),
    ],
)
def test_a_word_that_yaml_reads_as_a_truth_value_is_named(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: a\n{content}\n", "utf-8")
    with pytest.raises(ValueError, match=message):
        parse_options(TrainingArguments, argv=["--config", str(path)])


@pytest.mark.parametrize("value", ["floaty16", "float8", "torch.bfloat16"])
def test_a_word_of_a_file_is_one_of_those_that_there_are(tmp_path, value):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"dtype: {value}\n", "utf-8")
    with pytest.raises(ValueError, match=rf"recipe.yaml: dtype must be one of auto, bfloat16, .*; got '{value}'"):
        parse_options(ModelConfig, argv=["--config", str(path)])


@pytest.mark.parametrize("name, message", [("missing.yaml", "there is no such file"), ("", "is a folder")])
def test_a_config_that_is_no_file_is_named(tmp_path, name, message):
    with pytest.raises(OSError, match=f"--config .*: {message}"):
        parse_options(Options, argv=["--config", str(tmp_path / name)])


@pytest.mark.parametrize(
    "option, needed",
    [
        ("logging_steps=-1", "greater than 0"),
        ("ddp_timeout=0", "greater than 0"),
        ("dataloader_num_workers=-1", "0 or more"),
        ("eval_accumulation_steps=0", "1 or more"),
    ],
)
def test_numbers_of_the_trainer_have_ranges(tmp_path, option, needed):
    name, value = option.split("=")
    with pytest.raises(ValueError, match=f"{name} must be {needed}; got {value}"):
        parse_options(TrainingArguments, argv=["--output_dir", str(tmp_path), f"--{name}", value])
