"""Every command, option, value, figure and name on the pages is there, in both languages; every page can be found."""

import argparse
import ast
import dataclasses
import importlib
import re
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import yaml

from pangu_trl import KWiseRewardConfig, PPOConfig, cli
from pangu_trl.data.arguments import DataArguments
from pangu_trl.runs.arguments import OWN_OPTIONS, RunArguments
from pangu_trl.runs.folders import STAGES
from pangu_trl.runs.option_sources import options_of_recipe
from pangu_trl.runs.shipped import accelerate_config

from .pages import CHINESE, ENGLISH, PAGES, ROOT, commands, headings, names, python_blocks, read, settings

sys.path.insert(0, str(ROOT / "docs" / "site"))
import navigation  # noqa: E402
import other_language  # noqa: E402
import page_sources  # noqa: E402
import search_in_two_languages  # noqa: E402

# What other programs are called with on our pages.
OPTIONS_OF_OTHERS = {
    *("--config_file", "--machine_rank", "--main_process_ip", "--main_process_port", "--num_processes"),
    *("--quiet", "--signal", "--trust-remote-code", "--weight-transfer-config", "--logprobs-mode", "--local_dir"),
    *("--any_option", "--logdir"),
}


def by_name(path):
    return str(path.relative_to(ROOT))


@cache
def recipe_options(stage):
    return {option.name for option in options_of_recipe(ROOT / "recipes" / f"{stage}.py")}


@cache
def parser_of(command):
    parser = argparse.ArgumentParser(prog=command, exit_on_error=False, allow_abbrev=False)
    cli._command(command).add_options(parser)
    return parser


@cache
def words_of_sources():
    """Every word of our code, and of the trainers that ours build on."""
    import transformers
    import trl

    folders = [ROOT / name for name in ("pangu_trl", "recipes", "accelerate_configs", "tests")]
    folders += [ROOT / "benchmarks"]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml", ".jinja")]
    files += [*(importlib.resources.files(trl) / "trainer").glob("*_trainer.py")]
    files += [importlib.resources.files(transformers) / name for name in ("trainer.py", "trainer_utils.py")]
    files += [path for path in (ROOT / "data_cards").glob("*.md")]
    return set(re.findall(r"[\w/]+", "\n".join(path.read_text("utf-8") for path in files)))


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_commands_on_a_page_are_taken(path):
    page = read(path)
    for words in commands(page.code):
        take(words, is_whole=True)
    for words in commands(page.inline):
        take(words, is_whole=False)


def take(words, is_whole):
    """Reads a command as the command line would; one that is mentioned in passing may lack what it needs."""
    command, *rest = words
    assert command in cli.COMMANDS, words
    if "--help" in rest:
        return
    parser = parser_of(command)
    parser.exit_on_error = True
    with pytest.MonkeyPatch.context() as patch:
        for action in parser._actions if not is_whole else ():
            patch.setattr(action, "required", False)
        args, unknown = parser.parse_known_args(rest)
    if command in STAGES:
        given = {word.removeprefix("--") for word in unknown if word.startswith("--")}
        assert given - {"any_option"} <= recipe_options(command), words
    else:
        assert unknown == [], words
    if getattr(args, "accelerate", None):
        accelerate_config(str(args.accelerate))


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_names_and_figures_on_a_page_are_of_the_code(path):
    known = set().union(*map(recipe_options, STAGES)) | words_of_sources()
    options = {option for command in cli.COMMANDS for option in parser_of(command)._option_string_actions}
    options |= OPTIONS_OF_OTHERS | {"--version"}
    for name in names(read(path)):
        if name.startswith("--"):
            assert name in options or name.removeprefix("--") in known, name
        else:
            # Some are put together where they are logged.
            parts = set(re.sub(r"^(?:eval|train)_", "", name).split("/"))
            assert name in known or parts <= known or (ROOT / name).exists(), name


def fields_with_choices():
    classes = (PPOConfig, KWiseRewardConfig, DataArguments, RunArguments, *sum(OWN_OPTIONS.values(), ()))
    found = {}
    for field in (field for options in classes for field in dataclasses.fields(options)):
        if field.metadata.get("choices"):
            found.setdefault(field.name, set()).update(field.metadata["choices"])
    return found


@pytest.mark.parametrize("path", [*ENGLISH, *CHINESE], ids=by_name)
def test_values_on_a_page_are_among_the_choices(path):
    choices = fields_with_choices()
    known = set().union(*map(recipe_options, STAGES)) | words_of_sources()
    for name, value in settings(read(path)):
        assert name in known, name
        if name in choices:
            assert yaml.safe_load(value) in choices[name], f"{name}: {value}"


@pytest.mark.parametrize("path", [path for path in PAGES if python_blocks(path)], ids=by_name)
def test_python_on_a_page_names_what_there_is(path):
    for block in python_blocks(path):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


# Of the fork's scripts and DeepSpeed-Chat's own; files and functions of the fork.
OLD_NAMES = """
    GPTPanguConfig GPTPanguModel GPTPanguTokenizer create_hf_model create_critic_model num_padding_at_beginning
    convert_linear_layer_to_lora lora_dim lora_module_name only_optimize_lora sft_9000_data.py RewardDataset
    RewardSFTDataset DataCollatorReward_K RewardModel_K forward_value evaluation_reward max_seq_len DeepSpeedRLHFEngine
    train_pangu_RL.py max_prompt_seq_len max_answer_seq_len per_device_train_batch_size per_device_mini_train_batch_size
    generation_batch_numbers ppo_epochs num_train_epochs actor_learning_rate critic_learning_rate lr_scheduler_type
    num_warmup_steps disable_actor_dropout actor_lora_dim enable_hybrid_engine enable_ema inference_tp_size
    critic_gradient_checkpointing actor_gradient_checkpointing unsupervised_dataset_name unsup_coef generate_experience
    compute_rewards train_unsupervised moving_average data_path data_split seed local_rank zero_stage offload
    gradient_checkpointing disable_dropout weight_decay actor_zero_stage critic_zero_stage print_answers
    enable_tensorboard tensorboard_path actor_model_name_or_path critic_model_name_or_path
    gradient_accumulation_steps output_dir
""".split()


def test_every_name_of_the_old_pipeline_has_a_row():
    text = (ROOT / "docs" / "migrating-from-deepspeed-chat.md").read_text("utf-8")
    left = "\n".join(re.findall(r"^\|([^|\n]*)\|", text, flags=re.M))
    assert [name for name in OLD_NAMES if not re.search(rf"\b{re.escape(name)}\b", left)] == []


def test_the_preset_recipe_has_the_old_numbers():
    recipe = yaml.safe_load((ROOT / "recipes/pangu-2.6b/ppo/deepspeed_chat.yaml").read_text("utf-8"))
    old, ours = PPOConfig.deepspeed_chat(output_dir="x"), PPOConfig(output_dir="x")
    named = {name for name, value in vars(old).items() if value != vars(ours)[name]} & {
        field.name for field in dataclasses.fields(PPOConfig)
    }
    assert named >= {"num_ppo_epochs", "max_prompt_length", "ptx_coef"}
    assert {name: recipe[name] for name in named} == {name: getattr(old, name) for name in named}


def all_pages():
    return {str(path.relative_to(ROOT).with_suffix("")) for path in [*ENGLISH, *CHINESE]}


@pytest.mark.parametrize("front", ["docs/index", "docs/zh/index"])
def test_every_page_is_in_the_navigation(front):
    source = [(ROOT / f"{front}.md").read_text("utf-8")]
    named = navigation.named_pages(source[0], front)
    assert all((ROOT / f"{page}.md").exists() for page in named)
    app = SimpleNamespace(
        config=SimpleNamespace(root_doc=front), env=SimpleNamespace(found_docs=all_pages() | {"docs/new-page"})
    )
    navigation.fill_in(app, front, source)
    # Once each: a page in two lists would have two places.
    assert len(re.findall(r"README>?$", source[0], flags=re.M)) == {"docs/index": 2, "docs/zh/index": 2}[front]
    assert navigation.named_pages(source[0], front) == (all_pages() | {"docs/new-page"} | named) - {front}


def test_chinese_pages_have_an_english_page_each_and_say_it_in_chinese():
    assert {path.stem for path in CHINESE} >= {
        *("README_zh", "index", "first-steps", "data", "reward", "ppo", "troubleshooting", "choosing")
    }
    for path in CHINESE:
        page = str(path.relative_to(ROOT).with_suffix(""))
        english = other_language.in_other_language(page, chinese_site=True)
        assert other_language.in_other_language(english, chinese_site=False) == page
        assert (ROOT / f"{english}.md").exists()
        text = path.read_text("utf-8")
        assert len(re.findall(r"[一-鿿]", text)) > 50, path
        assert all(re.search(r"[一-鿿]|^pangu_trl$|^PPO$|^LoRA$", heading) for heading in headings(path)), path


def test_links_between_languages_and_to_folders_are_no_links_on_the_site():
    text = "English | [中文](README_zh.md)\n\n[recipes](recipes), [one](recipes/ppo.py), [page](docs/ppo.md#rewards)\n"
    found = page_sources.for_the_site(text, ROOT)
    assert found == "\n`recipes`, [one](recipes/ppo.py), [page](docs/ppo.md#rewards)\n"
    for name in ("README.md", "README_zh.md"):
        assert (ROOT / name).read_text("utf-8") != page_sources.for_the_site((ROOT / name).read_text("utf-8"), ROOT)


def test_search_cuts_chinese_into_pairs_of_characters():
    found = search_in_two_languages.EnglishAndChinese({}).split("用 PPO 训练奖励模型 kl_coef")
    assert found[:2] == ["用", "PPO"]
    assert {"训练", "练奖", "奖励", "励模", "模型", "奖", "kl_coef"} <= set(found)
    assert "训练奖励模型" not in found
