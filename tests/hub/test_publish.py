"""`pangu-trl publish`: what leaves the machine, what stays, and that it loads for others."""

import json
import os

import author as author_steps
import peft
import pytest
import reader as reader_steps
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from pangu_trl import cli
from pangu_trl.hub import prepare
from pangu_trl.models.reward_model import score_responses
from pangu_trl.reward.card import RewardCard

IDS = [[11, 12, 13, 14, 15], [20, 21, 22, 23, 9]]


@pytest.fixture
def saved(policy, tokenizer, tmp_path):
    """What a recipe leaves: model and tokenizer, and things for nobody else."""
    folder = tmp_path / "pangu-2.6B"
    policy.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": str(folder)}))
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "model.safetensors").write_bytes(b"of step 2")
    return folder


@pytest.fixture
def saved_reward(reward_model, tokenizer, tmp_path):
    reward_model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


@pytest.fixture
def adapter(saved, tokenizer, tmp_path):
    """An adapter trained on a local folder, as PEFT and the recipes save it; and the logits with it."""
    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(saved), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model(input_ids=torch.tensor(IDS)).logits.detach()


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def files_of(hub, repo_id, revision="main"):
    return hub.repositories[f"models/{repo_id}"].files(revision)


# What a folder would publish, without a hub.


def test_only_files_for_others_are_chosen_and_the_folder_is_left_as_it_is(saved):
    before = {path: path.stat().st_mtime_ns for path in saved.rglob("*")}
    publication = prepare(saved, "tester/pangu", with_code=True)
    assert publication.left_out == ["checkpoint-2/", "trainer_state.json", "training_args.bin"]
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= publication.files.keys()
    assert {"tokenizer_config.json", "vocab.model", "modeling_gptpangu.py"} <= publication.files.keys()
    assert not [name for name in publication.files if "/" in name]
    assert {path: path.stat().st_mtime_ns for path in saved.rglob("*")} == before


def test_a_reward_model_takes_its_reward_card_along(saved_reward, tokenizer):
    card = RewardCard.describe(tokenizer, loss_type="pairwise", max_answers=4, score_mean=0.5, score_std=2.0)
    card.save(saved_reward)
    publication = prepare(saved_reward, "tester/reward")
    assert publication.files["reward_card.json"] == saved_reward / "reward_card.json"
    assert publication.left_out == []


@pytest.mark.parametrize(
    "name", ["vocab.txt", "spiece.model", "sentencepiece.bpe.model", "merges.txt", "qwen.tiktoken", "tekken.json"]
)
def test_vocabularies_of_other_models_go_along_whatever_paths_their_tokens_look_like(saved, name):
    (saved / name).write_text('{"tokens": ["/usr/local/lib"]}')
    assert name in prepare(saved, "tester/other").files


def test_further_files_are_included_by_pattern(saved):
    publication = prepare(saved, "tester/pangu", include=["training_*"])
    assert "training_args.bin" in publication.files
    with pytest.raises(FileNotFoundError, match="no file that matches images/"):
        prepare(saved, "tester/pangu", include=["images/*"])


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        (
            "config.json",
            {"model_type": "gpt_pangu", "data": {"train": "/data/clients/a.jsonl"}},
            r"config.json, key 'data.train': a path of somebody's machine \('/data/",
        ),
        ("generation_config.json", {"from": r"C:\Users\li\model"}, "generation_config.json, key 'from': a path"),
        (
            "tokenizer_config.json",
            {"token": "hf_abcdefghijklmnopqrstuvwxyz01234567"},
            r"key 'token': an access token of the Hub \(hf_\.\.\.\)",
        ),
        ("README.md", "Trained in {home}.", "README.md, line 1: a path"),
        ("README.md", "From {folder}/data.", "README.md, line 1: a path"),
    ],
)
def test_private_paths_and_tokens_are_refused(saved, file, content, found):
    if isinstance(content, str):
        text = content.format(home=os.path.expanduser("~"), folder=saved)
    else:
        text = json.dumps(content)
    (saved / file).write_text(text)
    with pytest.raises(ValueError, match=found) as refusal:
        prepare(saved, "tester/pangu")
    assert "uvwxyz" not in str(refusal.value)


def test_weights_that_are_missing_damaged_or_twice_are_refused(saved):
    (saved / "README.md").write_text("# Mine\n")
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="model.safetensors: no whole safetensors file"):
        prepare(saved, "tester/pangu")
    (saved / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(ValueError, match="two sets of weights"):
        prepare(saved, "tester/pangu")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00001-of-00002.safetensors"):
        prepare(saved, "tester/pangu")
    (saved / "model.safetensors.index.json").unlink()
    (saved / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(FileNotFoundError, match="pickles"):
        prepare(saved, "tester/pangu")


def test_an_adapter_names_its_base_model_on_the_hub_and_never_a_folder(adapter, saved):
    folder, _ = adapter
    with pytest.raises(ValueError, match="names its base model by a folder.*--base-model"):
        prepare(folder, "tester/adapter")
    publication = prepare(folder, "tester/adapter", base_model="tester/base")
    config = json.loads(publication.files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "tester/base"
    card = publication.files["README.md"].decode()
    assert metadata(card)["base_model"] == "tester/base"
    assert str(saved) not in card and "[More Information Needed]" not in card


@pytest.mark.parametrize("relative", [False, True])
def test_a_card_of_ones_own_stays_but_for_the_local_path_in_its_metadata(adapter, saved, relative):
    folder, _ = adapter
    local = "base" if relative else str(saved)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": local}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    card = "---\nbase_model: {0}\ntags:\n- base_model:adapter:{0}\n---\n# Mine\n\nThe base is good.\n"
    (folder / "README.md").write_text(card.format(local))
    publication = prepare(folder, "tester/adapter", base_model="tester/base")
    # "base_model" itself is no mention of a folder that is called base.
    assert publication.files["README.md"].decode() == card.format("tester/base")
    assert not publication.has_new_card
    with pytest.raises(ValueError, match="write license, stage and base model there"):
        prepare(folder, "tester/adapter", base_model="tester/base", license="mit")


def test_a_form_that_somebody_began_to_fill_in_is_kept(adapter):
    folder, _ = adapter
    card = (folder / "README.md").read_text() + "\nMore data: reviews of hotels.\n"
    assert "[More Information Needed]" in card
    (folder / "README.md").write_text(card)
    publication = prepare(folder, "tester/adapter", base_model="tester/base")
    assert "reviews of hotels" in publication.files["README.md"].decode()


def test_a_model_of_transformers_needs_no_pangu_trl(tmp_path):
    config = GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    card = prepare(tmp_path, "tester/gpt2").files["README.md"].decode()
    assert "import pangu_trl" not in card and 'AutoModelForCausalLM.from_pretrained("tester/gpt2")' in card
    with pytest.raises(ValueError, match="found gpt2"):
        prepare(tmp_path, "tester/gpt2", with_code=True)


def test_a_language_model_is_no_reward_model_because_somebody_says_so(saved):
    with pytest.raises(ValueError, match="stage reward is for sequence classification models"):
        prepare(saved, "tester/pangu", stage="reward")


def test_ppo_is_seen_from_the_critic_beside_the_policy(saved, reward_model):
    reward_model.save_pretrained(saved / "value_model")
    publication = prepare(saved, "tester/ppo")
    assert "PPO against a reward model" in publication.files["README.md"].decode()
    assert "value_model/" in publication.left_out
    assert "training stage" not in prepare(saved / "value_model", "tester/critic").files["README.md"].decode()


def test_ppo_is_seen_from_a_value_head_on_the_policy(saved):
    (saved / "value_head.safetensors").write_bytes(b"")
    publication = prepare(saved, "tester/ppo")
    assert "PPO against a reward model" in publication.files["README.md"].decode()
    assert "value_head.safetensors" in publication.left_out


def test_code_that_a_configuration_names_goes_along_or_is_missed(saved):
    config = json.loads((saved / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "my_configuration.MyConfig", "AutoModel": "other/repo--modeling.MyModel"}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="custom code in my_configuration.py, which the folder lacks"):
        prepare(saved, "tester/pangu")
    (saved / "my_configuration.py").write_text("from .sibling import something\n")
    (saved / "sibling.py").write_text("something = 1\n")
    publication = prepare(saved, "tester/pangu")
    assert {"my_configuration.py", "sibling.py"} <= publication.files.keys()
    assert "sibling.py" not in publication.left_out


@pytest.mark.parametrize("repo_id", ["pangu", "a/b/c", "/tmp/pangu", "te ster/x"])
def test_a_name_that_is_no_repository_is_refused(saved, repo_id):
    with pytest.raises(ValueError, match="USER/NAME"):
        prepare(saved, repo_id)


def test_a_folder_that_holds_nothing_to_publish_is_refused(tmp_path, capsys):
    assert cli.main(["publish", str(tmp_path), "tester/x"]) == 2
    assert "expected a folder with config.json" in capsys.readouterr().err


def test_a_dry_run_prints_the_files_and_the_card(saved, capsys):
    assert cli.main(["publish", str(saved), "tester/pangu", "--with-code", "--stage", "sft", "--dry-run"]) == 0
    output = capsys.readouterr()
    assert "  modeling_gptpangu.py\n" in output.out and "supervised fine-tuning" in output.out
    assert "left out: checkpoint-2/, trainer_state.json, training_args.bin" in output.err


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo", "grpo"])
def test_the_blank_card_of_trl_is_replaced_after_every_stage(saved, saved_reward, stage):
    folder = saved_reward if stage == "reward" else saved
    _trl_card(None, stage).save(folder / "README.md")
    assert "fine-tuned version of [None]" in (folder / "README.md").read_text("utf-8")
    publication = prepare(folder, "tester/x")
    card = publication.files["README.md"].decode()
    # PPO's card is that of the transformers library, so its stage shows only by its critic.
    assert metadata(card)["tags"][:2] == ["pangu_trl", stage]
    assert publication.replaced_form and "None" not in card and "time machine" not in card
    # The base model that TRL knew is kept, and a folder never.
    _trl_card("tester/base", stage).save(folder / "README.md")
    assert metadata(prepare(folder, "tester/x").files["README.md"].decode())["base_model"] == "tester/base"
    _trl_card("/data/li/model", stage).save(folder / "README.md")
    card = prepare(folder, "tester/x").files["README.md"].decode()
    assert "base_model" not in metadata(card) and "/data" not in card


def _trl_card(base_model, stage):
    from trl.trainer.utils import generate_model_card

    return generate_model_card(
        base_model=base_model,
        model_name="x",
        hub_model_id=None,
        dataset_name=None,
        tags=["trl", stage],
        wandb_url=None,
        trackio_url=None,
        comet_url=None,
        trainer_name=stage.upper(),
        trainer_citation="@article{x,\n title = {{A}}\n}",
        template_file="rm_model_card.md" if stage == "reward" else "lm_model_card.md",
        paper_title="A paper",
        paper_id="2305.18290",
    )


@pytest.mark.parametrize(
    ("base", "found"),
    [
        (None, "says 'fine-tuned version of None'"),
        ("/data/li/model", "names the base model by a folder, '/data/li/model'"),
        ("runs/sft/final", "names the base model by a folder, 'runs/sft/final'"),
    ],
)
def test_a_card_that_somebody_wrote_on_must_not_name_a_folder_or_nothing(saved, base, found):
    card = _trl_card(base, "sft")
    (saved / "README.md").write_text(str(card) + "\nThe data are reviews of hotels.\n", "utf-8")
    with pytest.raises(ValueError, match=f"README.md: {found}"):
        prepare(saved, "tester/x")
    (saved / "README.md").write_text(str(_trl_card("tester/base", "sft")) + "\nReviews of hotels.\n", "utf-8")
    assert "Reviews of hotels" in prepare(saved, "tester/x").files["README.md"].decode()


def test_a_form_with_a_license_in_its_metadata_is_somebodys_own(saved):
    card = _trl_card("tester/base", "sft")
    card.data.license = "mit"
    card.save(saved / "README.md")
    publication = prepare(saved, "tester/x")
    assert not publication.replaced_form and metadata(publication.files["README.md"].decode())["license"] == "mit"


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"---\na: [\n---\n# Mine\n", "are no YAML"), ("模型".encode("gb18030"), "README.md: expected UTF-8")],
)
def test_a_card_that_the_hub_could_not_read_is_refused(saved, content, found):
    (saved / "README.md").write_bytes(content)
    with pytest.raises(ValueError, match=found):
        prepare(saved, "tester/x")


def test_a_stage_that_there_is_not_is_refused(saved):
    with pytest.raises(ValueError, match="sft, reward, ppo, dpo, grpo; got 'rlhf'"):
        prepare(saved, "tester/x", stage="rlhf")


def test_a_dry_run_without_the_hub_says_what_it_does_not_know(saved, capsys):
    assert cli.main(["publish", str(saved), "tester/pangu", "--dry-run"]) == 0
    assert "what would be deleted is not known" in capsys.readouterr().err


# Against the hub in memory.


def test_only_weights_that_could_be_loaded_instead_are_deleted_and_a_dry_run_names_them(author, hub, saved, tmp_path):
    code, output, _ = author(author_steps.run_command, "publish", saved, "tester/many", "--dry-run")
    assert code == 0 and "would create the repository" in output and "models/tester/many" not in hub.repositories
    stale = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model-00001-of-00001.bin"]
    stale += ["pytorch_model.bin", "pytorch_model.bin.index.json"]
    others = ["onnx/model.safetensors", "adapters/law/adapter_model.safetensors", "value_head.safetensors", "a.gguf"]
    others += [
        "critic/model.safetensors",
        "model.fp16.safetensors",
        "my_model.safetensors",
        "notes.txt",
        "x/pytorch_model.bin",
    ]
    author(author_steps.upload, "tester/many", [*stale, *others, "model.safetensors"])
    before = dict(files_of(hub, "tester/many"))
    code, output, _ = author(author_steps.run_command, "publish", saved, "tester/many", "--dry-run")
    assert code == 0
    assert output.split("as weights of an earlier version\n")[1].split("README.md:")[0].split() == sorted(stale)
    assert files_of(hub, "tester/many") == before
    code, _, errors = author(author_steps.run_command, "publish", saved, "tester/many")
    assert code == 0, errors
    published = files_of(hub, "tester/many")
    assert not set(stale) & set(published) and set(others) <= set(published)
    assert published["model.safetensors"] == (saved / "model.safetensors").read_bytes()


def test_a_published_model_loads_with_and_without_pangu_trl(author, reader, hub, saved, policy):
    code, output, errors = author(author_steps.run_command, "publish", saved, "tester/pub-2.6B", "--with-code")
    assert code == 0, errors
    assert "tester/pub-2.6B: published" in output and "left out: checkpoint-2/" in errors
    expected = policy(torch.tensor(IDS)).logits
    for process, steps in ((author, author_steps), (reader, reader_steps)):
        torch.testing.assert_close(process(steps.outputs, "tester/pub-2.6B", "AutoModelForCausalLM", IDS), expected)
    assert reader(reader_steps.class_of, "tester/pub-2.6B", "AutoTokenizer")[0] == "transformers_modules"
    published = files_of(hub, "tester/pub-2.6B")
    assert not [name for name, content in published.items() if str(saved.parent).encode() in content]
    assert reader(reader_steps.run_example, published["README.md"].decode()) == ("GPTPanguForCausalLM", None)


def test_a_published_reward_model_scores_as_its_card_says(author, reader, hub, saved_reward, reward_model, tokenizer):
    code, _, errors = author(author_steps.run_command, "publish", saved_reward, "tester/pub-reward", "--with-code")
    assert code == 0, errors
    card = files_of(hub, "tester/pub-reward")["README.md"].decode()
    _, score = reader(reader_steps.run_example, card)
    [expected] = score_responses(reward_model, tokenizer, ["prompt"], ["answer"], batch_size=1)
    assert score == pytest.approx(expected, abs=1e-5)


def test_an_adapter_is_published_after_its_base_model(author, reader, hub, saved, adapter):
    folder, expected = adapter
    command = ["publish", folder, "tester/pub-adapter", "--base-model", "tester/pub-base", "--with-code"]
    code, _, errors = author(author_steps.run_command, *command)
    assert code == 2 and "tester/pub-base is not on the Hub" in errors
    assert "models/tester/pub-adapter" not in hub.repositories
    assert author(author_steps.run_command, "publish", saved, "tester/pub-base", "--with-code")[0] == 0
    assert author(author_steps.run_command, *command)[0] == 0
    logits = author(author_steps.adapter_outputs, "tester/pub-adapter", "AutoModelForCausalLM", IDS)
    torch.testing.assert_close(logits, expected)
    logits = reader(reader_steps.adapter_outputs, "tester/pub-base", "tester/pub-adapter", "AutoModelForCausalLM", IDS)
    torch.testing.assert_close(logits, expected)
    card = files_of(hub, "tester/pub-adapter")["README.md"].decode()
    assert reader(reader_steps.run_example, card) == ("PeftModelForCausalLM", None)


def test_a_reward_adapter_scores_as_its_card_says(author, reader, hub, saved, tokenizer, tmp_path):
    torch.manual_seed(4)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False)
    base = AutoModelForSequenceClassification.from_pretrained(saved, num_labels=1)
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert author(author_steps.run_command, "publish", saved, "tester/pub-sft", "--with-code")[0] == 0
    command = ["publish", tmp_path / "adapter", "tester/pub-scores", "--base-model", "tester/pub-sft", "--with-code"]
    code, _, errors = author(author_steps.run_command, *command)
    assert code == 0, errors
    name, score = reader(reader_steps.run_example, files_of(hub, "tester/pub-scores")["README.md"].decode())
    assert name == "PeftModelForSequenceClassification"
    [expected] = score_responses(model, tokenizer, ["prompt"], ["answer"], batch_size=1)
    assert score == pytest.approx(expected, abs=1e-5) and abs(expected) > 1e-3


def test_shards_replace_whole_weights_on_a_branch(author, hub, saved, policy, tmp_path):
    assert author(author_steps.run_command, "publish", saved, "tester/pub-shards")[0] == 0
    command = ["publish", tmp_path / "shards", "tester/pub-shards", "--revision", "sharded"]
    with torch.no_grad():
        policy.transformer.wte.weight.mul_(2)
    policy.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    code, _, errors = author(author_steps.run_command, *command)
    assert code == 0
    assert "deleted weights of an earlier version: model.safetensors\n" in errors
    assert "README.md was kept" in errors
    assert "model.safetensors" in files_of(hub, "tester/pub-shards")
    logits = author(author_steps.outputs, "tester/pub-shards", "AutoModelForCausalLM", IDS, revision="sharded")
    torch.testing.assert_close(logits, policy(torch.tensor(IDS)).logits)


def test_a_tokenizer_alone_leaves_the_model_in_its_repository(author, hub, saved, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert author(author_steps.run_command, "publish", tmp_path / "tokenizer", "tester/pub-tokenizer")[0] == 0
    assert author(author_steps.tokenize, "tester/pub-tokenizer", "房间很大") == tokenizer("房间很大")["input_ids"]
    assert author(author_steps.run_command, "publish", saved, "tester/pub-tokenizer")[0] == 0
    assert author(author_steps.run_command, "publish", tmp_path / "tokenizer", "tester/pub-tokenizer")[0] == 0
    assert "model.safetensors" in files_of(hub, "tester/pub-tokenizer")


def test_a_private_repository_is_for_its_owner_and_a_public_one_is_no_place_for_secrets(author, hub, saved):
    assert author(author_steps.run_command, "publish", saved, "tester/secret", "--private")[0] == 0
    assert hub.repositories["models/tester/secret"].private
    assert author(author_steps.run_command, "publish", saved, "tester/open")[0] == 0
    commits = len(hub.repositories["models/tester/open"].commits)
    code, _, errors = author(author_steps.run_command, "publish", saved, "tester/open", "--private")
    assert code == 2 and "exists and is public; nothing was uploaded" in errors
    assert len(hub.repositories["models/tester/open"].commits) == commits


def test_an_adapter_does_not_go_where_a_model_is(author, hub, saved, adapter):
    assert author(author_steps.run_command, "publish", saved, "tester/taken")[0] == 0
    folder, _ = adapter
    code, _, errors = author(
        author_steps.run_command, "publish", folder, "tester/taken", "--base-model", "tester/taken"
    )
    assert code == 2 and "holds the files of a model" in errors


def test_without_access_nothing_is_uploaded_and_the_error_is_one_line(author, hub, saved):
    code, _, errors = author(author_steps.run_command_without_token, "publish", saved, "tester/no-token")
    assert code == 2 and "Invalid username or password" in errors
    assert len([line for line in errors.splitlines() if "error:" in line]) == 1
    assert "models/tester/no-token" not in hub.repositories


def test_a_hub_that_cannot_be_reached_is_one_line(author, saved, adapter):
    folder, _ = adapter
    for words in ((saved, "tester/far"), (folder, "tester/far", "--base-model", "tester/base")):
        code, _, errors = author(author_steps.run_command_without_hub, "publish", *words)
        assert code == 2 and "error: tester/far: cannot reach the Hub at http://127.0.0.1:9; " in errors
