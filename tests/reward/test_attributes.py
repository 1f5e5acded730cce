"""A reward head with several attributes: its loss, what is saved, and the one reward that everybody reads from it."""

import copy
import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from pangu_trl import GPTPanguForSequenceClassification, KWiseRewardConfig, KWiseRewardTrainer, PPOConfig, PPOTrainer
from pangu_trl.cli import main
from pangu_trl.data.jsonl import read_jsonl, write_jsonl
from pangu_trl.data.loading import load_records
from pangu_trl.data.streams import as_stream, stream_records
from pangu_trl.models.reward_model import load_reward_model, score_responses
from pangu_trl.models.sequence_scores import sequence_scores
from pangu_trl.reward.answer_scores import answer_attributes
from pangu_trl.reward.card import read_reward_card
from pangu_trl.reward.losses import attribute_loss

NAMES, WEIGHTS = ["correctness", "verbosity"], [0.75, -0.5]


@pytest.fixture
def two_outputs(tiny_config) -> GPTPanguForSequenceClassification:
    config = copy.deepcopy(tiny_config)
    config.num_labels = 2
    torch.manual_seed(5)
    model = GPTPanguForSequenceClassification(config)
    # Large enough for rewards that differ.
    torch.nn.init.normal_(model.score.weight, std=0.5)
    return model


@pytest.fixture
def judged(rankings) -> Dataset:
    """The rankings, with two attributes of every answer; the first answer of the first prompt has no verbosity."""
    values = [[float(place % 3) for place in range(len(scores))] for scores in rankings["scores"]]
    lengths: list[list[float | None]] = [[1.0 + place for place in range(len(scores))] for scores in rankings["scores"]]
    lengths[0][0] = None
    return rankings.add_column("correctness", values).add_column("verbosity", lengths)


@pytest.fixture
def make_attribute_trainer(make_trainer, two_outputs, judged):
    def make(**options) -> KWiseRewardTrainer:
        settings = dict(loss_type="regression", attributes=NAMES, attribute_weights=WEIGHTS) | options
        data = {name: settings.pop(name, judged) for name in ("train_dataset", "eval_dataset")}
        return make_trainer(model=settings.pop("model", None) or copy.deepcopy(two_outputs), **data, **settings)

    return make


def test_the_loss_by_hand():
    # Answer 1 is off by 1 and by 2, of answer 2 one value is known, off by 3, and answer 3 is padding.
    predicted = torch.tensor([[[1.0, 0.0], [0.0, 9.0], [7.0, 7.0]], [[5.0, 5.0]] * 3])
    values = torch.tensor([[[2.0, 3.0, 0.0], [2.0, math.nan, 0.0]], [[math.nan] * 3] * 2])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    # (1 + 4 + 9) / 3; nothing is known of the second prompt.
    torch.testing.assert_close(attribute_loss(predicted, values, mask), torch.tensor([14 / 3, 0.0]))


def test_unknown_values_and_padding_give_no_gradient():
    predicted = torch.tensor([[[1.0, 0.0], [3.0, 3.0]]], requires_grad=True)
    values = torch.tensor([[[2.0, 0.0], [math.nan, 0.0]]])
    attribute_loss(predicted, values, torch.tensor([[True, False]])).sum().backward()
    # d (1 - 2)^2 / d 1 = -2, and nothing else.
    assert predicted.grad.tolist() == [[[-2.0, 0.0], [0.0, 0.0]]]


def test_the_objective_is_the_mean_over_prompts_with_a_value_however_they_are_accumulated(
    make_attribute_trainer, trained_weights, judged
):
    # Of the last prompt nothing is known, and it does not count; ties of the ranking do not matter.
    unknown = judged.map(
        lambda row, index: {name: [None] * len(row[name]) for name in NAMES} if index == len(judged) - 1 else {},
        with_indices=True,
    )
    whole = trained_weights(make_attribute_trainer(train_dataset=unknown, train_sampling_strategy="sequential"))
    parts = make_attribute_trainer(
        train_dataset=unknown,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        folder="parts",
    )
    without = make_attribute_trainer(
        train_dataset=unknown.select(range(len(unknown) - 1)),
        train_sampling_strategy="sequential",
        folder="without",
    )
    for other in (trained_weights(parts), trained_weights(without)):
        for name, weight in whole.items():
            torch.testing.assert_close(other[name], weight, msg=name)


def test_training_brings_every_output_to_its_attribute(make_attribute_trainer, judged):
    trainer = make_attribute_trainer(optim="adamw_torch", learning_rate=2e-2, max_steps=40, weight_decay=0.0)

    def error() -> float:
        batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
        with torch.no_grad():
            found = answer_attributes(trainer.model, batch, len(NAMES))
        return attribute_loss(found, batch["attribute_scores"], batch["answer_mask"]).mean().item()

    before = error()
    trainer.train()
    assert error() < 0.2 * before


def test_the_saved_model_is_read_as_one_reward_everywhere(make_attribute_trainer, judged, tokenizer, tmp_path):
    trainer = make_attribute_trainer()
    trainer.train()
    figures = trainer.evaluate()
    folder = tmp_path / "saved"
    trainer.save_model(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["reward_attributes"] == NAMES and config["reward_attribute_weights"] == WEIGHTS
    assert config["id2label"] == {"0": "correctness", "1": "verbosity"}
    card = read_reward_card(folder)
    assert card.attributes == dict(zip(NAMES, WEIGHTS, strict=True)) and card.loss_type == "regression"
    # The outputs of the model as transformers loads it, summed up here.
    raw = GPTPanguForSequenceClassification.from_pretrained(folder)
    model, its_tokenizer = load_reward_model(str(folder))
    assert model.config.num_labels == 1 and not hasattr(model.config, "reward_attributes")
    prompt, responses = judged["prompt"][1], judged["responses"][1]
    scores = score_responses(model, its_tokenizer, [prompt] * len(responses), responses, batch_size=2)
    expected = []
    for response in responses:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids += tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            outputs = sequence_scores(raw, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0]
        expected.append(0.75 * outputs[0].item() - 0.5 * outputs[1].item())
    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-3
    rows = zip(trainer.predict(judged).predictions, judged["scores"], strict=True)
    rewards = [score for row, real in rows for score in row[: len(real)]]
    assert figures["eval_reward_mean"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-5)
    # The commands take it too.
    answers, output = tmp_path / "answers.jsonl", tmp_path / "scored.jsonl"
    write_jsonl(answers, [{"prompt": prompt, "responses": responses}])
    assert main(["score", str(answers), "--judge", str(folder), "--output", str(output), "--batch-size", "2"]) == 0
    assert read_jsonl(output)[0]["scores"] == pytest.approx(expected, abs=1e-5)
    assert main(["average", str(folder), str(folder), "--output", str(tmp_path / "average")]) == 0
    averaged, _ = load_reward_model(str(tmp_path / "average"))
    torch.testing.assert_close(averaged.score.weight, model.score.weight)
    assert read_reward_card(tmp_path / "average").attributes is None


def test_evaluate_reward_measures_the_sum(make_attribute_trainer, judged, tmp_path, capsys):
    trainer = make_attribute_trainer()
    figures = trainer.evaluate()
    trainer.save_model(tmp_path / "saved")
    write_jsonl(tmp_path / "held-out.jsonl", judged)
    words = ["--data", str(tmp_path / "held-out.jsonl"), "--output", str(tmp_path / "report"), "--json"]
    capsys.readouterr()
    assert main(["evaluate-reward", str(tmp_path / "saved"), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("pair_accuracy", "exact_match", "kendall_tau", "reward_mean", "reward_std", "length_correlation"):
        assert found[name] == pytest.approx(figures[f"eval_{name}"], abs=1e-5), name
    assert found["reward_std"] > 1e-3


def test_a_stream_teaches_what_the_same_records_in_memory_teach(make_attribute_trainer, trained_weights, judged):
    in_memory = trained_weights(make_attribute_trainer(train_sampling_strategy="sequential", max_steps=3))
    streams = dict(train_dataset=as_stream(lambda: iter(list(judged))), eval_dataset=None)
    streamed = make_attribute_trainer(max_steps=3, folder="stream", **streams)
    for name, weight in trained_weights(streamed).items():
        torch.testing.assert_close(weight, in_memory[name], msg=name)


@pytest.mark.parametrize("streams", [False, True])
def test_rows_of_helpsteer_teach_every_attribute(streams, make_attribute_trainer, tmp_path):
    """As they are published: a row for each answer, a column for each judgement."""
    rows = [
        {"prompt": prompt, "response": text, "helpfulness": 4 - place, "correctness": place, "verbosity": 2}
        for prompt in ("问一", "问二", "问三", "问四")
        for place, text in enumerate(("好", "一般", "差"))
    ]
    write_jsonl(tmp_path / "helpsteer.jsonl", rows)
    load = stream_records if streams else load_records
    data = load(str(tmp_path / "helpsteer.jsonl"), "ranking", data_format="helpsteer")
    names = ["helpfulness", "correctness"]
    trainer = make_attribute_trainer(
        attributes=names, attribute_weights=[1.0, 1.0], train_dataset=data, eval_dataset=None, max_steps=1
    )
    (batch,) = [batch for batch, _ in zip(trainer.get_train_dataloader(), range(1), strict=False)]
    expected = [[4.0, 3.0, 2.0], [0.0, 1.0, 2.0]]
    assert all(values == expected for values in batch["attribute_scores"].tolist()) and len(batch["attribute_scores"])


def test_ppo_takes_the_sum_and_refuses_the_outputs(
    make_attribute_trainer, two_outputs, policy, prompts, tokenizer, tmp_path
):
    make_attribute_trainer().save_model(tmp_path / "saved")

    def build(reward_model: object) -> PPOTrainer:
        sizes = dict(per_device_train_batch_size=2, num_ppo_epochs=1, max_steps=1, max_prompt_length=48)
        sizes["max_completion_length"] = 4
        args = PPOConfig(output_dir=str(tmp_path / "ppo"), use_cpu=True, report_to="none", save_strategy="no", **sizes)
        models = dict(reward_model=reward_model, value_model=copy.deepcopy(reward_model))
        return PPOTrainer(copy.deepcopy(policy), args, train_dataset=prompts, processing_class=tokenizer, **models)

    with pytest.raises(ValueError, match="must have num_labels=1; got 2.*load_reward_model, which sums them up"):
        build(two_outputs)
    trainer = build(load_reward_model(str(tmp_path / "saved"))[0])
    trainer.train()
    assert math.isfinite(next(entry for entry in trainer.state.log_history if "reward/mean" in entry)["reward/mean"])


@pytest.mark.parametrize(
    "key, value", [("reward_attribute_weights", [1.0]), ("reward_attribute_weights", None), ("reward_attributes", "x")]
)
def test_a_model_whose_weights_cannot_be_read_is_refused(make_attribute_trainer, tmp_path, key, value):
    make_attribute_trainer().save_model(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(config | {key: value}), "utf-8")
    with pytest.raises(ValueError, match="must name an attribute and a weight for each of the 2 outputs of its head"):
        load_reward_model(str(tmp_path / "saved"))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(attributes=NAMES), "loss_type 'regression' and attributes.*Set both or neither"),
        (dict(loss_type="regression"), "loss_type 'regression' and attributes.*Set both or neither"),
        (dict(loss_type="regression", attributes=["a", "a"]), "attributes must differ from one another"),
        (dict(loss_type="regression", attributes=NAMES, attribute_weights=[1.0]), "one number for each of the 2 attri"),
        (dict(loss_type="regression", attributes=NAMES, attribute_weights=[0.0, 0.0]), "finite numbers, not all 0"),
        (dict(loss_type="regression", attributes=NAMES, attribute_weights=[1.0, math.nan]), "finite numbers, not"),
        (dict(attribute_weights=[1.0]), "one number for each of the 0 attributes"),
        (dict(loss_type="regression", attributes=NAMES, prefix_sharing=True), "prefix_sharing does not go with"),
        (dict(loss_type="regression", attributes=NAMES, lm_coefficient=0.1), "lm_coefficient does not go with"),
    ],
)
def test_options_that_contradict_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        KWiseRewardConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_data_and_models_that_do_not_fit_are_refused(
    make_attribute_trainer, make_trainer, judged, rankings, two_outputs
):
    with pytest.raises(ValueError, match="the train set has no column 'correctness', which attributes names"):
        make_attribute_trainer(train_dataset=rankings)
    short = judged.map(lambda row: {"verbosity": row["verbosity"][1:]})
    with pytest.raises(ValueError, match="train row 0: 'verbosity' must hold a finite number, or null, for each of"):
        make_attribute_trainer(train_dataset=short)
    with pytest.raises(ValueError, match="has num_labels 2, and there are 1 attributes"):
        make_attribute_trainer(attributes=["correctness"], attribute_weights=None)
    with pytest.raises(ValueError, match="The model has `num_labels=2`, but reward models require"):
        make_trainer(model=two_outputs)
    with pytest.raises(ValueError, match="without an adapter, whose folder has no place for weights"):
        make_attribute_trainer(peft_config=LoraConfig(r=2, task_type="SEQ_CLS"))
    ids = Dataset.from_list([{"chosen_ids": [20, 21], "rejected_ids": [20, 22]}])
    with pytest.raises(ValueError, match="holds token ids without values of attributes"):
        make_attribute_trainer(train_dataset=ids)
