"""The `pangu-trl` command from prompts to figures, with a tiny model, and what it says about wrong input."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model, PreTrainedTokenizerFast

from pangu_trl.answers import chatting
from pangu_trl.cli import main
from pangu_trl.data.jsonl import read_jsonl
from pangu_trl.data.loading import load_records

TOKENS = ["<pad>", "</s>", "<unk>", *"abcdefgh?你好吗很"]

JUDGES = """
def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]

def nothing(prompts, completions, **columns):
    return [float("nan")] * len(completions)

def too_few(prompts, completions, **columns):
    return [0.0]
"""


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory) -> Path:
    """`policy` and `reward`, tiny models that read one token a character."""
    folder = tmp_path_factory.mktemp("models")
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}",
    )
    torch.manual_seed(0)
    sizes = {"n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.3}
    config = GPT2Config(vocab_size=len(TOKENS), **sizes, eos_token_id=1, pad_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder / "policy")
    config.num_labels = 1
    GPT2ForSequenceClassification(config).save_pretrained(folder / "reward")
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("judges.py").write_text(JUDGES)
    write_lines("prompts.jsonl", {"prompt": "你好吗?", "topic": "问候"}, {"prompt": "ab", "topic": "字母"})
    write_lines(
        "answers.jsonl",
        {"prompt": "p", "responses": ["aaa", "b", "aaa"], "finished": [True, True, False], "ranked": False},
        {"prompt": "q", "responses": ["a", "bb"], "finished": [True, True], "ranked": False},
    )
    return tmp_path


def write_lines(path: str, *records: object) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    Path(path).write_text(text, encoding="utf-8")


def sample(models_folder: Path, *options: str, prompts: str = "prompts.jsonl", output: str = "sampled.jsonl") -> int:
    short = ["--max-new-tokens", "5", *([] if "--num-answers" in options else ["--num-answers", "3"])]
    model = str(models_folder / "policy")
    return main(["sample", "--model", model, "--prompts", prompts, "--output", output, *short, *options])


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "sample",
            "--model --adapter --prompts --split --limit --output --num-answers --max-new-tokens --temperature --top-p "
            "--top-k --batch-size --seed --overwrite --debug",
        ),
        ("score", "ANSWERS.jsonl --judge --output --score-column --batch-size --overwrite --debug"),
        (
            "evaluate",
            "ANSWERS.jsonl --judge --score-column --min-score-gap --against --output --batch-size --overwrite",
        ),
    ],
)
def test_help_names_every_option(command, options, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert [option for option in options.split() if option not in text] == []


def test_from_prompts_to_a_ranking_that_the_reward_recipe_reads(models_folder, capsys):
    assert sample(models_folder) == 0
    assert "sampled.jsonl: 2 prompts, 6 answers" in capsys.readouterr().out
    assert sample(models_folder, "--limit", "1", "--num-answers", "1", output="one.jsonl") == 0
    assert "one.jsonl: 1 prompt, 1 answer, " in capsys.readouterr().out
    sampled = read_jsonl("sampled.jsonl")
    assert [(record["prompt"], record["topic"]) for record in sampled] == [("你好吗?", "问候"), ("ab", "字母")]
    for record in sampled:
        assert len(record["responses"]) == len(record["finished"]) == 3
        assert record["ranked"] is False
        for response, finished in zip(record["responses"], record["finished"], strict=True):
            # An unknown token is special and not written, so a cut-off answer has 5 characters at most.
            assert len(response) <= (4 if finished else 5)

    assert main(["score", "sampled.jsonl", "--judge", "judges.py:length", "--output", "scored.jsonl"]) == 0
    for scored, record in zip(read_jsonl("scored.jsonl"), sampled, strict=True):
        texts = [text for text in record["responses"] if text]
        assert scored == {
            "prompt": record["prompt"],
            "responses": texts,
            "finished": [f for f, text in zip(record["finished"], record["responses"], strict=True) if text],
            "topic": record["topic"],
            "scores": [float(len(text)) for text in texts],
        }
    assert len(load_records("scored.jsonl", "ranking")) == 2

    reward = str(models_folder / "reward")
    assert main(["score", "scored.jsonl", "--judge", reward, "--score-column", "rm", "--output", "both.jsonl"]) == 0
    for both, scored in zip(read_jsonl("both.jsonl"), read_jsonl("scored.jsonl"), strict=True):
        assert len(both.pop("rm")) == len(scored["responses"])
        assert both == scored
    assert main(["evaluate", "both.jsonl", "--judge", reward, "--output", "figures.json"]) == 0
    assert 0 <= json.loads(Path("figures.json").read_text())["judge/pair_accuracy"] <= 1


def test_sampling_again_gives_the_same_file_and_another_seed_another(models_folder):
    for output, seed in (("a.jsonl", "0"), ("b.jsonl", "0"), ("c.jsonl", "1")):
        assert sample(models_folder, "--seed", seed, output=output) == 0
    assert Path("a.jsonl").read_bytes() == Path("b.jsonl").read_bytes() != Path("c.jsonl").read_bytes()


def test_an_adapter_is_sampled_from_on_its_base_and_by_itself(models_folder, tmp_path):
    base = GPT2LMHeadModel.from_pretrained(models_folder / "policy")
    adapter = get_peft_model(
        base, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    )
    adapter.save_pretrained(tmp_path / "adapter")
    assert sample(models_folder, output="base.jsonl") == 0
    assert sample(models_folder, "--adapter", "adapter", output="on_base.jsonl") == 0
    options = ["--prompts", "prompts.jsonl", "--max-new-tokens", "5", "--num-answers", "3"]
    assert main(["sample", "--model", "adapter", *options, "--output", "by_itself.jsonl"]) == 0
    assert Path("base.jsonl").read_bytes() != Path("on_base.jsonl").read_bytes() == Path("by_itself.jsonl").read_bytes()


def test_prompts_of_messages_get_answers_in_messages(models_folder):
    write_lines("chat.jsonl", {"prompt": [{"role": "user", "content": "ab"}]})
    assert sample(models_folder, prompts="chat.jsonl") == 0
    (record,) = read_jsonl("sampled.jsonl")
    assert [[message["role"] for message in response] for response in record["responses"]] == [["assistant"]] * 3
    reward = str(models_folder / "reward")
    assert main(["score", "sampled.jsonl", "--judge", reward, "--score-column", "rm", "--output", "rm.jsonl"]) == 0


def test_a_data_card_gives_prompts(models_folder):
    Path("card.md").write_text(
        "---\npangu_trl:\n  kind: prompt\n  path: json\n  data_files: {test: prompts.jsonl}\n---\n", encoding="utf-8"
    )
    assert sample(models_folder, "--split", "test", "--limit", "1", prompts="card.md") == 0
    assert [record["prompt"] for record in read_jsonl("sampled.jsonl")] == ["你好吗?"]


def test_columns_about_old_answers_do_not_pass_to_new_ones(models_folder, capsys):
    write_lines(
        "old.jsonl",
        {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2], "rm": [3, 4], "topic": "x", "tags": ["y"]},
    )
    assert sample(models_folder, prompts="old.jsonl") == 0
    (record,) = read_jsonl("sampled.jsonl")
    assert sorted(record) == ["finished", "prompt", "ranked", "responses", "tags", "topic"]
    assert "describe the answers in it, not the new ones: responses, rm, scores" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prompts.jsonl: must hold one JSON object a line; the file is empty"),
        ('{"prompt": "a"}\n\n{"prompt": \n', "prompts.jsonl:3: must be one JSON object"),
        ('{"prompt": "a"}\n{"prompt": " "}\n', "prompts.jsonl:2: 'prompt' must be text that is not empty"),
        ('{"prompt": "a"}\n\n{"prompt": "aaaaabbbbbaaaaabbbbb"}\n', "prompts.jsonl:3: the prompt has 20 tokens"),
    ],
)
def test_bad_prompts_are_refused_by_line_and_nothing_is_written(models_folder, capsys, text, message):
    Path("prompts.jsonl").write_text(text)
    assert sample(models_folder) == 2
    error = capsys.readouterr().err
    assert f"pangu-trl sample: error: {message}" in error
    assert "Traceback" not in error
    assert not Path("sampled.jsonl").exists()


def test_missing_files_and_models_are_user_errors(models_folder, capsys):
    assert sample(models_folder, prompts="absent.jsonl") == 2
    assert "error: absent.jsonl: no such file" in capsys.readouterr().err
    model = "nobody/absent"
    assert main(["sample", "--model", model, "--prompts", "prompts.jsonl", "--output", "o.jsonl"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pangu-trl sample: error: {model}: not a folder or hub id that can be loaded")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--prompts", "prompts.jsonl", "--output", "o.jsonl", "--model"],
        ["sample", "--prompts", "prompts.jsonl", "--output", "o.jsonl", "--model", "POLICY", "--adapter"],
        ["score", "answers.jsonl", "--output", "o.jsonl", "--judge"],
        ["evaluate-reward", "--data", "rankings.jsonl", "--output", "o"],
        ["average", "--output", "o", "REWARD"],
        ["merge", "--output", "o"],
        ["chat"],
        ["check-data", "prompts.jsonl", "--no-near-duplicates", "--model"],
        ["plan", "--stage", "sft", "--accelerate", "zero3", "--config"],
    ],
)
def test_a_misspelt_folder_of_a_model_is_told_with_the_nearest_one(models_folder, tmp_path, capsys, words):
    (tmp_path / "runs" / "demo" / "base").mkdir(parents=True)
    # A file is no model, however near its name.
    (tmp_path / "runs" / "demo" / "bse.log").touch()
    Path("rankings.jsonl").write_text('{"prompt": "a", "responses": ["b", "c"]}\n')
    words = [str(models_folder / word.lower()) if word in ("POLICY", "REWARD") else word for word in words]
    misspelt = "runs/demo/bse"
    if words[0] == "plan":
        Path("sft.yaml").write_text(f"model_name_or_path: {misspelt}\ntrain_data: prompts.jsonl\noutput_dir: o\n")
        misspelt = "sft.yaml"
    assert main([*words, misspelt]) == 2
    error = capsys.readouterr().err
    assert "runs/demo/bse: there is no such folder (looked for " in error
    assert error.endswith(") (did you mean runs/demo/base?)\n")
    assert not Path("o").exists() and not Path("o.jsonl").exists()


def test_a_misspelt_folder_that_could_be_a_hub_id_is_told_with_the_nearest_one(tmp_path, capsys):
    (tmp_path / "runs" / "base").mkdir(parents=True)
    assert main(["chat", "runs/bse"]) == 2
    assert "runs/bse: not a folder (did you mean runs/base?) or hub id that can be loaded; " in capsys.readouterr().err


def test_a_model_without_the_weights_of_its_head_is_refused(models_folder, tmp_path, capsys):
    config = GPT2Config(vocab_size=len(TOKENS), n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=False)
    GPT2Model(config).save_pretrained(tmp_path / "headless")
    PreTrainedTokenizerFast.from_pretrained(models_folder / "policy").save_pretrained(tmp_path / "headless")
    assert main(["sample", "--model", "headless", "--prompts", "prompts.jsonl", "--output", "o.jsonl"]) == 2
    assert "headless: no language model, its files hold no weights for lm_head.weight" in capsys.readouterr().err


def test_answers_are_not_sampled_from_a_reward_model(models_folder, capsys):
    model = str(models_folder / "reward")
    what = f"error: {model}: a reward model or critic (GPT2ForSequenceClassification), not a language model"
    assert main(["sample", "--model", model, "--prompts", "prompts.jsonl", "--output", "o.jsonl"]) == 2
    assert what in capsys.readouterr().err
    assert main(["chat", model]) == 2
    assert what in capsys.readouterr().err


def test_answers_are_not_scored_by_a_language_model(models_folder, capsys):
    model = str(models_folder / "policy")
    assert main(["score", "answers.jsonl", "--judge", model, "--output", "o.jsonl"]) == 2
    assert f"error: {model}: a language model (GPT2LMHeadModel), not a reward model" in capsys.readouterr().err


@pytest.mark.parametrize(("file", "content"), [("model.safetensors", "half"), ("config.json", '{"n_layer": "x"}')])
def test_a_damaged_model_is_a_user_error(models_folder, tmp_path, capsys, file, content):
    shutil.copytree(models_folder / "policy", tmp_path / "damaged")
    if file == "config.json":
        content = json.dumps(json.loads((tmp_path / "damaged" / file).read_text()) | json.loads(content))
    (tmp_path / "damaged" / file).write_text(content)
    assert main(["sample", "--model", "damaged", "--prompts", "prompts.jsonl", "--output", "o.jsonl"]) == 2
    assert "error: damaged: not a folder or hub id that can be loaded" in capsys.readouterr().err


def test_debug_shows_the_traceback(models_folder):
    with pytest.raises(FileNotFoundError, match="no such file"):
        sample(models_folder, "--debug", prompts="absent.jsonl")


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "--model", "absent", "--prompts", "prompts.jsonl", "--output", "kept.jsonl"],
        ["score", "answers.jsonl", "--judge", "judges.py:length", "--output", "kept.jsonl"],
        ["evaluate", "answers.jsonl", "--judge", "judges.py:length", "--output", "kept.jsonl"],
        ["best-of-n", "answers.jsonl", "--judge", "judges.py:length", "--output", "kept.jsonl"],
        ["evaluate-reward", "absent", "--data", "answers.jsonl", "--output", "kept.jsonl"],
    ],
)
def test_an_existing_output_is_kept(command, capsys):
    Path("kept.jsonl").write_text("precious")
    assert main(command) == 2
    assert "kept.jsonl: exists already; choose another name, or replace it with --overwrite" in capsys.readouterr().err
    assert Path("kept.jsonl").read_text() == "precious"


def test_overwrite_replaces_the_output():
    Path("old.jsonl").write_text("old")
    assert main(["score", "answers.jsonl", "--judge", "judges.py:length", "--output", "old.jsonl", "--overwrite"]) == 0
    assert [record["scores"] for record in read_jsonl("old.jsonl")] == [[3, 1, 3], [1, 2]]


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("judges.py:nothing", "answers.jsonl:1: 'responses[0]': judge judges.py:nothing must return finite numbers"),
        (
            "judges.py:too_few",
            "answers.jsonl:1: 'responses[0]': judge judges.py:too_few must return a list of 4 numbers",
        ),
    ],
)
def test_a_judge_that_fails_stops_the_command_without_output(judge, message, capsys):
    assert main(["score", "answers.jsonl", "--judge", judge, "--output", "scored.jsonl"]) == 2
    assert f"pangu-trl score: error: {message}" in capsys.readouterr().err
    assert not Path("scored.jsonl").exists()


def test_scoring_leaves_out_empty_answers_and_says_how_many(capsys):
    write_lines(
        "answers.jsonl",
        {"prompt": "p", "responses": ["", "a", "bb"], "finished": [True, False, True]},
        {"prompt": "q", "responses": ["a", " "]},
    )
    assert main(["score", "answers.jsonl", "--judge", "judges.py:length", "--output", "scored.jsonl"]) == 0
    assert read_jsonl("scored.jsonl") == [
        {"prompt": "p", "responses": ["a", "bb"], "finished": [False, True], "scores": [1, 2]}
    ]
    assert "left out 2 empty answers, as a ranking holds none, and 1 records" in capsys.readouterr().err


def test_a_ranking_needs_two_answers_but_a_further_column_does_not(capsys):
    write_lines("single.jsonl", {"prompt": "p", "responses": [""], "ranked": False})
    assert main(["score", "single.jsonl", "--judge", "judges.py:length", "--output", "scored.jsonl"]) == 2
    assert "single.jsonl:1: a ranking needs two or more answers; got 1" in capsys.readouterr().err
    options = ["--judge", "judges.py:length", "--score-column", "length", "--output", "scored.jsonl"]
    assert main(["score", "single.jsonl", *options]) == 0
    assert read_jsonl("scored.jsonl") == [{"prompt": "p", "responses": [""], "ranked": False, "length": [0.0]}]


def test_scores_that_are_there_are_not_replaced(capsys):
    write_lines("scored.jsonl", {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]})
    assert main(["score", "scored.jsonl", "--judge", "judges.py:length", "--output", "o.jsonl"]) == 2
    assert "scored.jsonl:1: column 'scores' is taken" in capsys.readouterr().err
    options = ["--judge", "judges.py:length", "--output", "o.jsonl", "--score-column"]
    # `responses` is there; `chosen` would turn the record into one of another form.
    for column in ("responses", "chosen"):
        assert main(["score", "answers.jsonl", *options, column]) == 2


def test_evaluation_compares_judge_and_files_and_writes_what_it_prints(capsys):
    write_lines(
        "a.jsonl", {"prompt": "p", "responses": ["aa", "b"], "scores": [1, 2]}, {"prompt": "x", "responses": ["a"]}
    )
    write_lines("b.jsonl", {"prompt": "p", "responses": ["c", "dd"]})
    write_lines("scored.jsonl", {"prompt": "p", "responses": ["aa", "b"], "scores": [1, 2]})
    options = ["--judge", "judges.py:length", "--against", "b.jsonl", "--output", "out/figures.json"]
    assert main(["evaluate", "scored.jsonl", *options]) == 0
    figures = json.loads(Path("out/figures.json").read_text())
    # The judge prefers aa, the file's scores prefer b; lengths 2, 1 against 1, 2: one win, two ties, one loss.
    assert figures["judge/pair_accuracy"] == 0
    assert figures["score/mean"] == 1.5
    assert figures["against/mean_difference"] == 0
    assert figures["against/win_rate"] == 0.5
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert printed.keys() == figures.keys()
    assert printed["score/mean"] == "1.5"

    assert main(["evaluate", "a.jsonl", "--judge", "judges.py:length"]) == 2
    assert "a.jsonl:2: 'scores' must be a list of 1 finite numbers" in capsys.readouterr().err


def test_evaluation_without_a_judge_takes_the_scores_of_the_file(capsys):
    write_lines("scored.jsonl", {"prompt": "p", "responses": ["aa", "b"], "scores": [1, 2], "rm": [5, 7]})
    assert main(["evaluate", "scored.jsonl"]) == 0
    assert "score/mean              1.5\n" in capsys.readouterr().out
    assert main(["evaluate", "scored.jsonl", "--score-column", "rm"]) == 0
    assert "score/mean              6\n" in capsys.readouterr().out


def test_evaluation_against_a_file_says_which_prompts_it_cannot_compare(capsys):
    write_lines("b.jsonl", {"prompt": "q", "responses": ["c"]}, {"prompt": "z", "responses": ["c"]})
    options = ["--judge", "judges.py:length", "--against"]
    assert main(["evaluate", "answers.jsonl", *options, "b.jsonl"]) == 0
    assert "warning: 2 prompts are in only one of the two files" in capsys.readouterr().err
    write_lines("c.jsonl", {"prompt": "z", "responses": ["c"]})
    assert main(["evaluate", "answers.jsonl", *options, "c.jsonl"]) == 2
    assert "c.jsonl: has no prompt of answers.jsonl" in capsys.readouterr().err
    assert main(["evaluate", "answers.jsonl", "--against", "c.jsonl"]) == 2
    assert "answers.jsonl: no column 'scores' to compare by" in capsys.readouterr().err


def test_sampling_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(models_folder, monkeypatch, capsys):
    from pangu_trl.answers import sampling

    assert sample(models_folder, "--batch-size", "2", output="whole.jsonl") == 0
    draw, batches = sampling._sample_batch, []

    def stopped_at_the_third(*args):
        batches.append(len(args[3]))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(sampling, "_sample_batch", stopped_at_the_third)
    assert sample(models_folder, "--batch-size", "2") == 130
    assert not Path("sampled.jsonl").exists()
    assert sample(models_folder, "--batch-size", "2", "--seed", "1") == 2
    assert "sampled.jsonl.partial: holds the results of a call that was stopped, with other options: seed 0, now 1" in (
        capsys.readouterr().err
    )
    # Two prompts with three answers each: of three batches of two, one is left.
    assert sample(models_folder, "--batch-size", "2") == 0
    assert batches == [2, 2, 2, 2]
    assert Path("sampled.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert not Path("sampled.jsonl.partial").exists()


def test_sampling_refuses_what_json_cannot_hold_before_the_model_is_loaded(capsys):
    Path("prompts.jsonl").write_text('{"prompt": "a", "w": NaN}\n')
    assert main(["sample", "--model", "absent", "--prompts", "prompts.jsonl", "--output", "o.jsonl"]) == 2
    assert "prompts.jsonl:1: " in capsys.readouterr().err


def test_typed_special_tokens_of_prompts_are_split_refused_or_kept(models_folder, capsys):
    write_lines("prompts.jsonl", {"prompt": "a</s>"})
    assert sample(models_folder) == 0
    assert sample(models_folder, "--special-tokens-in-text", "refuse", output="refused.jsonl") == 2
    assert "prompts.jsonl:1: the texts must not hold special tokens" in capsys.readouterr().err
    assert sample(models_folder, "--special-tokens-in-text", "keep", output="kept.jsonl") == 0
    # The judge reads the prompt as the sampled model did.
    assert read_jsonl("kept.jsonl")[0]["special_tokens_in_text"] == "keep"


def test_an_adapter_is_merged_into_a_plain_folder_that_answers_the_same(models_folder, tmp_path, capsys):
    base = GPT2LMHeadModel.from_pretrained(models_folder / "policy")
    config = LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    assert main(["merge", "adapter", "--output", "merged"]) == 0
    assert "merged: language model" in capsys.readouterr().out
    assert not Path("merged/adapter_config.json").exists()
    ids = torch.tensor([[3, 4, 5]])
    merged = GPT2LMHeadModel.from_pretrained("merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted.eval()(ids).logits)
    assert len(PreTrainedTokenizerFast.from_pretrained("merged")) == len(TOKENS)
    assert main(["merge", "merged", "--output", "again"]) == 2
    assert "merged: is no adapter" in capsys.readouterr().err
    assert main(["merge", "adapter", "--output", "merged"]) == 2
    assert "merged: exists already" in capsys.readouterr().err


def test_two_models_answer_line_by_line_what_sampling_gives(models_folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\n\n/new\nab\n/quit\nnever read\n"))
    model = str(models_folder / "policy")
    shutil.copytree(model, "second")
    words = ["--temperature", "0", "--max-new-tokens", "5"]
    assert main(["chat", model, "second", *words]) == 0
    shown = capsys.readouterr().out.splitlines()
    write_lines("prompts.jsonl", {"prompt": [{"role": "user", "content": "ab"}]})
    assert sample(models_folder, "--temperature", "0", "--num-answers", "1") == 0
    ((answer,),) = [record["responses"] for record in read_jsonl("sampled.jsonl")]
    answer = answer[0]["content"]
    # The same again after /new, as nothing was kept.
    assert shown == [f"[{model}]", answer, "[second]", answer] * 2


def test_a_talk_that_is_too_long_is_told_and_goes_on(models_folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("abcdabcdabcdabcdabcdabcd\nab\n"))
    assert main(["chat", str(models_folder / "policy"), "--max-new-tokens", "5"]) == 0
    assert "together more than the 24 positions of the model" in capsys.readouterr().err


class Terminal(io.StringIO):
    """Lines that are typed."""

    def isatty(self) -> bool:
        return True


def interrupt_at_token(monkeypatch, number: int) -> None:
    """Presses Ctrl-C at a token of all that are sampled."""
    put, tokens = chatting._Stream.put, []

    def put_and_interrupt(stream, value):
        put(stream, value)
        new = stream.ids[-1:]
        tokens.extend(new)
        if new and len(tokens) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(chatting._Stream, "put", put_and_interrupt)


def test_ctrl_c_stops_one_answer_and_at_the_prompt_ends(models_folder, monkeypatch, capsys):
    model = str(models_folder / "policy")
    shutil.copytree(model, "second")
    words = ["chat", model, "second", "--temperature", "0", "--max-new-tokens", "5"]
    monkeypatch.setattr("sys.stdin", Terminal("ab\n"))
    assert main(words) == 0
    _, _, first, _, second = capsys.readouterr().out.replace("> ", "> \n").splitlines()[:5]
    assert len(first) == 5
    monkeypatch.setattr("sys.stdin", Terminal("ab\n/new\nab\n"))
    interrupt_at_token(monkeypatch, 3)
    assert main(words) == 0
    shown, told = capsys.readouterr()
    # The other model answers in full, and so does the first in the next turn.
    answers = [line for line in shown.replace("> ", "").splitlines() if not line.startswith("[")]
    assert [answer for answer in answers if answer] == [first[:3], second, first, second]
    assert "Ctrl-C stops an answer" in told
    assert told.count("stopped; what came stays in the talk") == 1

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert main(words) == 130


def test_ctrl_c_ends_a_talk_whose_lines_come_from_a_file(models_folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\nab\n"))
    interrupt_at_token(monkeypatch, 3)
    assert main(["chat", str(models_folder / "policy"), "--temperature", "0", "--max-new-tokens", "5"]) == 130


def test_an_answer_that_was_cut_says_by_what(models_folder, monkeypatch, capsys):
    model = str(models_folder / "policy")
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\n"))
    assert main(["chat", model, "--temperature", "0", "--max-new-tokens", "1"]) == 0
    assert "cut off after 1 token; a greater --max-new-tokens gives more" in capsys.readouterr().err
    # The default is more than the 24 positions of the model hold, which is no reason not to answer.
    monkeypatch.setattr("sys.stdin", io.StringIO("abcdabcdabcdabcdabcd\n"))
    assert main(["chat", model, "--temperature", "0"]) == 0
    shown, told = capsys.readouterr()
    assert shown.strip()
    assert "cut off, as the talk fills the positions of the model; /new begins anew" in told


def test_bytes_that_are_no_utf_8_are_told_and_the_next_line_is_answered(models_folder, monkeypatch, capsys):
    model = str(models_folder / "policy")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\nab\n"), encoding="utf-8"))
    assert main(["chat", model, "--temperature", "0", "--max-new-tokens", "5"]) == 0
    shown, told = capsys.readouterr()
    assert "the terminal did not send UTF-8, so the line was left out" in told
    assert len(shown.splitlines()) == 1 and len(shown.strip()) == 5
