"""`push_to_hub` and `from_pretrained("user/name")` of the libraries, with their real client against a hub in memory."""

import author as author_steps
import peft
import pytest
import reader as reader_steps
import torch

IDS = [[11, 12, 13, 14, 15], [20, 21, 22, 23, 9]]
TEXT = "酒店的房间很大，服务也好。<eot>"


@pytest.fixture
def saved(policy, tokenizer, tmp_path):
    policy.eval().save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def expected(policy):
    return policy.eval()(torch.tensor(IDS)).logits.detach()


def test_a_model_and_its_tokenizer_come_back(author, hub, saved, expected, tokenizer):
    author(author_steps.push, saved, "AutoModelForCausalLM", "tester/policy")
    author(author_steps.push, saved, "AutoTokenizer", "tester/policy")
    assert hub.repositories["models/tester/policy"].files()["vocab.model"] == tokenizer.vocabulary.model
    logits = author(author_steps.outputs, "tester/policy", "AutoModelForCausalLM", IDS)
    torch.testing.assert_close(logits, expected)
    assert author(author_steps.tokenize, "tester/policy", TEXT) == tokenizer(TEXT)["input_ids"]


def test_shards_on_a_branch_come_back(author, hub, saved, expected):
    options = {"max_shard_size": "20KB", "revision": "sharded"}
    author(author_steps.push, saved, "AutoModelForCausalLM", "tester/shards", **options)
    names = hub.repositories["models/tester/shards"].files("sharded")
    assert "model.safetensors.index.json" in names and "model.safetensors" not in names
    assert hub.repositories["models/tester/shards"].files("main") == {}
    logits = author(author_steps.outputs, "tester/shards", "AutoModelForCausalLM", IDS, revision="sharded")
    torch.testing.assert_close(logits, expected)


def test_a_reward_model_comes_back(author, reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    author(author_steps.push, tmp_path, "AutoModelForSequenceClassification", "tester/reward")
    scores = author(author_steps.outputs, "tester/reward", "AutoModelForSequenceClassification", IDS)
    torch.testing.assert_close(scores, reward_model(torch.tensor(IDS)).logits)


@pytest.fixture
def adapter(policy, saved, expected, tmp_path):
    """An adapter whose two factors are random, so that it changes the logits; and the logits with it."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)
    model = peft.get_peft_model(policy, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model(input_ids=torch.tensor(IDS)).logits.detach()


def test_an_adapter_comes_back_on_its_base_model(author, hub, saved, adapter, expected):
    folder, adapted = adapter
    author(author_steps.push, saved, "AutoModelForCausalLM", "tester/base")
    author(author_steps.push, saved, "AutoTokenizer", "tester/base")
    author(author_steps.push_adapter, "tester/base", "AutoModelForCausalLM", folder, "tester/adapter")
    assert "adapter_model.safetensors" in hub.repositories["models/tester/adapter"].files()
    logits = author(author_steps.outputs, "tester/adapter", "AutoModelForCausalLM", IDS)
    torch.testing.assert_close(logits, adapted)
    assert (adapted - expected).abs().max() > 0.01


def test_registered_classes_push_their_code(author, reader, saved, expected, tokenizer):
    author(author_steps.push_registered, saved, "tester/pangu-2.6B")
    loaded = reader(reader_steps.class_of, "tester/pangu-2.6B", "AutoModelForCausalLM")
    assert loaded == ("transformers_modules", "GPTPanguForCausalLM")
    logits = reader(reader_steps.outputs, "tester/pangu-2.6B", "AutoModelForCausalLM", IDS)
    torch.testing.assert_close(logits, expected)
    assert reader(reader_steps.tokenize, "tester/pangu-2.6B", TEXT) == tokenizer(TEXT)["input_ids"]


@pytest.mark.parametrize(
    ("source", "options"), [("tester/nothing", {}), ("tester/revised", {"revision": "no-such-branch"})]
)
def test_a_repository_or_branch_that_is_missing_is_an_os_error_that_names_it(author, reader, saved, source, options):
    author(author_steps.push, saved, "AutoModelForCausalLM", "tester/revised")
    kind, message = reader(reader_steps.error_of, source, "AutoModelForCausalLM", **options)
    assert kind == "OSError"
    assert options.get("revision", source) in message


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_training_pushes_every_save_and_the_end_without_its_options(author, hub, saved, rankings, tmp_path, strategy):
    output_dir = tmp_path / "run"
    repo_id = f"tester/run-{strategy}"
    left = author(
        author_steps.train_reward_model, saved, list(rankings)[:6], output_dir, repo_id, hub_strategy=strategy
    )
    assert "training_args.bin" in left
    repository = hub.repositories[f"models/{repo_id}"]
    assert {"model.safetensors", "config.json", "tokenizer_config.json", "README.md"} <= repository.files().keys()
    assert len(repository.commits) > 2
    assert not [name for name in repository.files() if name.startswith("checkpoint-")]
    assert ("last-checkpoint/optimizer.pt" in repository.files()) == (strategy == "checkpoint")
    leaks = [name for name, content in repository.files().items() if str(tmp_path).encode() in content]
    assert leaks == []
    assert not [name for name in repository.files() if name.endswith("training_args.bin")]
    assert repository.files()["model.safetensors"] == (output_dir / "model.safetensors").read_bytes()


def test_a_dataset_comes_back(author, reviews):
    assert author(author_steps.round_trip_dataset, reviews, "tester/reviews") == reviews
