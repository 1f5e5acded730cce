"""GPTPangu's code in a saved folder: it loads and computes the same where pangu_trl cannot be imported."""

import json

import author as author_steps
import pytest
import reader as reader_steps
import torch

import pangu_trl
from pangu_trl.hub import add_custom_code

IDS = [[11, 12, 13, 14, 15], [20, 21, 22, 23, 9]]
TEXT = "酒店的房间很大，服务也好。<eot>"


@pytest.fixture
def saved(policy, tokenizer, tmp_path):
    """A folder with model and tokenizer, named as the published model is."""
    folder = tmp_path / "pangu-2.6B"
    policy.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_reader_cannot_import_pangu_trl(reader):
    reasons = reader(reader_steps.import_errors, "pangu_trl", "pangu_trl.gptpangu.modeling_gptpangu")
    assert reasons == ["No module named 'pangu_trl'"] * 2


def test_a_folder_saved_by_registered_classes_loads_without_pangu_trl(
    author, reader, saved, policy, tokenizer, tmp_path
):
    author(author_steps.save_registered, saved, tmp_path / "registered")
    loaded = reader(reader_steps.class_of, tmp_path / "registered", "AutoModelForCausalLM")
    assert loaded == ("transformers_modules", "GPTPanguForCausalLM")
    logits = reader(reader_steps.outputs, tmp_path / "registered", "AutoModelForCausalLM", IDS)
    torch.testing.assert_close(logits, policy(torch.tensor(IDS)).logits)
    assert reader(reader_steps.tokenize, tmp_path / "registered", TEXT) == tokenizer(TEXT)["input_ids"]


@pytest.mark.parametrize(
    ("auto_class", "name"),
    [
        ("AutoConfig", "GPTPanguConfig"),
        ("AutoModel", "GPTPanguModel"),
        ("AutoModelForCausalLM", "GPTPanguForCausalLM"),
        ("AutoModelForSequenceClassification", "GPTPanguForSequenceClassification"),
        ("AutoModelForTokenClassification", "GPTPanguForTokenClassification"),
        ("AutoTokenizer", "GPTPanguTokenizer"),
    ],
)
def test_every_auto_class_loads_a_folder_with_added_code(reader, saved, auto_class, name):
    assert reader(reader_steps.error_of, saved, auto_class, trust=True)[0] in ("ValueError", "OSError", "KeyError")
    add_custom_code(saved)
    assert reader(reader_steps.class_of, saved, auto_class) == ("transformers_modules", name)
    kind, message = reader(reader_steps.error_of, saved, auto_class, trust=False)
    assert kind == "ValueError" and "trust_remote_code=True" in message


def test_added_code_computes_generates_and_tokenises_the_same(reader, saved, policy, tokenizer):
    add_custom_code(saved)
    logits = reader(reader_steps.outputs, saved, "AutoModelForCausalLM", IDS)
    torch.testing.assert_close(logits, policy(torch.tensor(IDS)).logits)
    options = dict(max_new_tokens=8, do_sample=False)
    expected = policy.generate(torch.tensor(IDS[:1]), **options).tolist()
    assert reader(reader_steps.generate, saved, IDS[:1], **options) == expected
    assert reader(reader_steps.tokenize, saved, TEXT) == tokenizer(TEXT)["input_ids"]
    assert reader(reader_steps.modules_of_pangu_trl) == []


def test_a_reward_model_scores_the_same_with_added_code(reader, reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    add_custom_code(tmp_path)
    scores = reader(reader_steps.outputs, tmp_path, "AutoModelForSequenceClassification", IDS)
    torch.testing.assert_close(scores, reward_model(torch.tensor(IDS)).logits)


def test_a_checkpoint_that_calls_itself_pangu_loads_with_added_code(reader, saved, policy):
    config = json.loads((saved / "config.json").read_text()) | {"model_type": "pangu"}
    (saved / "config.json").write_text(json.dumps(config))
    add_custom_code(saved)
    logits = reader(reader_steps.outputs, saved, "AutoModelForCausalLM", IDS)
    torch.testing.assert_close(logits, policy(torch.tensor(IDS)).logits)


def test_what_is_saved_without_pangu_trl_carries_the_code_on(reader, saved, policy, tmp_path):
    add_custom_code(saved)
    reader(reader_steps.save_again, saved, tmp_path / "again")
    logits = reader(reader_steps.outputs, tmp_path / "again", "AutoModelForCausalLM", IDS)
    torch.testing.assert_close(logits, policy(torch.tensor(IDS)).logits)
    for auto_class in ("AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer"):
        assert reader(reader_steps.class_of, tmp_path / "again", auto_class)[0] == "transformers_modules"


def test_pangu_trl_loads_its_own_classes_from_a_folder_with_code_and_saves_none(saved, tmp_path):
    add_custom_code(saved)
    model = pangu_trl.GPTPanguForCausalLM.from_pretrained(saved)
    model.save_pretrained(tmp_path / "copy")
    assert not list((tmp_path / "copy").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "copy" / "config.json").read_text())


@pytest.mark.parametrize("auto_class", ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"])
def test_with_pangu_trl_the_code_in_a_folder_does_not_run(author, saved, auto_class):
    add_custom_code(saved)
    for path in saved.glob("*.py"):
        path.write_text("raise RuntimeError('the code of the folder ran')\n")
    assert author(reader_steps.class_of, saved, auto_class)[0] == "pangu_trl"


def test_added_code_does_not_overwrite_other_code(saved):
    (saved / "modeling_gptpangu.py").write_text("# what the folder was published with\n")
    before = (saved / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match="modeling_gptpangu.py: exists with other content"):
        add_custom_code(saved)
    assert (saved / "config.json").read_bytes() == before
    assert not (saved / "configuration_gptpangu.py").exists()


def test_code_is_added_twice_without_a_change(saved):
    add_custom_code(saved)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    add_custom_code(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_code_is_refused_for_another_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError, match="found qwen3"):
        add_custom_code(tmp_path)
