"""What KWiseRewardTrainer adds to the plain pairwise run: prefix sharing, other losses, length buckets, its card."""

import json

import huggingface_hub
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from pangu_trl import KWiseRewardConfig, KWiseRewardTrainer
from pangu_trl.models.modes import evaluation_mode
from pangu_trl.models.reward_model import load_reward_model, score_responses
from pangu_trl.reward.card import RewardCard, check_reward_card, read_reward_card
from pangu_trl.reward.losses import ordered_pairs, plackett_luce_loss, tokenwise_loss
from pangu_trl.reward.sampler import LengthBucketSampler
from pangu_trl.runs.folders import REWARD_CARD_FILE


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        dict(max_row_tokens=4096),
        dict(max_row_tokens=150, pad_to_multiple_of=8),
        dict(per_device_train_batch_size=2, gradient_accumulation_steps=4),
        dict(gradient_checkpointing=True),
        dict(margin_coefficient=0.5),
        dict(loss_type="plackett_luce"),
    ],
    ids=["one row", "several rows", "accumulated 2 x 4", "gradient checkpointing", "margin", "plackett_luce"],
)
def test_prefix_sharing_takes_the_step_of_whole_sequences(make_trainer, trained_weights, options):
    objective = {name: value for name, value in options.items() if name in ("margin_coefficient", "loss_type")}
    whole = make_trainer(folder="whole", center_rewards_coefficient=0.1, **objective)
    shared = make_trainer(folder="shared", center_rewards_coefficient=0.1, prefix_sharing=True, **options)
    start = weights(whole)
    expected, found = trained_weights(whole), trained_weights(shared)
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-3
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_prefix_sharing_processes_each_prompt_once_and_evaluates_the_same(make_trainer):
    whole, shared = make_trainer(folder="whole"), make_trainer(folder="shared", prefix_sharing=True)
    expected, found = whole.evaluate(), shared.evaluate()
    for name in ("eval_loss", "eval_pair_accuracy", "eval_kendall_tau", "eval_reward_std", "eval_length_correlation"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5), name
    batch = shared.data_collator(list(shared.train_dataset))
    num_tokens = sum(
        len(row["prompt_input_ids"]) + sum(map(len, row["response_input_ids"])) for row in shared.train_dataset
    )
    assert batch["attention_mask"].sum() == num_tokens


def test_prefix_sharing_trains_an_adapter_with_its_head_and_the_saved_one_scores_the_same(
    make_trainer, policy, tokenizer, tmp_path
):
    policy.save_pretrained(tmp_path / "base")
    trainer = make_trainer(
        model=AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1),
        prefix_sharing=True,
        max_steps=2,
        learning_rate=0.5,
        peft_config=LoraConfig(r=4, task_type="SEQ_CLS"),
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert any("score" in name for name in before) and any("lora_A" in name for name in before)
    # lora_B starts at zero, so lora_A gets its first gradient in the second step, and in the top block a tiny one.
    assert [name for name in before if torch.equal(before[name], after[name]) and "lora_A" not in name] == []
    trainer.save_model(tmp_path / "saved")
    loaded, loaded_tokenizer = load_reward_model(str(tmp_path / "saved"))
    prompts, answers = ["总体来说，"] * 2, ["还不错。", "非常差！"]
    expected = score_responses(trainer.model, tokenizer, prompts, answers, 2)
    assert score_responses(loaded, loaded_tokenizer, prompts, answers, 2) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss_type", ["plackett_luce", "tokenwise"])
def test_other_losses_are_means_over_the_prompts_of_the_global_batch(make_trainer, trained_weights, loss_type):
    whole = make_trainer(folder="whole", loss_type=loss_type)
    parts = make_trainer(
        folder="parts", loss_type=loss_type, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    batch = whole.data_collator(list(whole.train_dataset))
    expected_loss = independent_loss(whole, batch, loss_type)
    start = weights(whole)
    expected, found = trained_weights(whole), trained_weights(parts)
    assert whole.state.log_history[0]["loss"] == pytest.approx(expected_loss, abs=1e-5)
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-3
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5, msg=name)


def independent_loss(trainer, batch: dict[str, torch.Tensor], loss_type: str) -> float:
    """Answer by answer without a batch, from the hidden states."""
    labels, mask = batch["scores"], batch["answer_mask"]
    lengths = batch["attention_mask"].sum(dim=2)
    scores = torch.zeros(batch["input_ids"].shape)
    model, pad = trainer.model, torch.tensor([trainer.processing_class.pad_token_id])
    with evaluation_mode(model):
        for row, answer in mask.nonzero().tolist():
            length = int(lengths[row, answer])
            input_ids = torch.cat([batch["input_ids"][row, answer, :length], pad])
            attention_mask = torch.arange(length + 1) < length
            outputs = model.transformer(input_ids.unsqueeze(0), attention_mask=attention_mask.unsqueeze(0))
            values = model.score(outputs.last_hidden_state)[0, :, 0]
            scores[row, answer, :length] = values[:length]
            # All padding behind an answer sees the same tokens from the same position.
            scores[row, answer, length:] = values[length]
    has_pair = ordered_pairs(labels, mask).any(dim=2).any(dim=1)
    if loss_type == "tokenwise":
        return tokenwise_loss(scores, batch["input_ids"], lengths, labels, mask)[has_pair].mean().item()
    ends = scores.gather(2, (lengths - 1).clamp(min=0).unsqueeze(2)).squeeze(2)
    return plackett_luce_loss(ends, labels, mask)[has_pair].mean().item()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_is_trained_through_adapter_and_head(make_trainer, policy, tokenizer, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    policy.save_pretrained(tmp_path / "base")
    quantised = dict(quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}), num_labels=1)

    def make(**options):
        return make_trainer(
            model=AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", **quantised),
            peft_config=LoraConfig(r=4, task_type="SEQ_CLS"),
            **options,
        )

    with pytest.raises(ValueError, match=r"what the base computes here is torch.float32. Set bf16 to true"):
        make()
    trainer = make(bf16=True, max_steps=2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert any("score" in name for name in before)
    trainer.train()
    # What is evaluated is the model that learns, which bitsandbytes would round otherwise in evaluation mode.
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad(), trainer.accelerator.autocast():
        learnt, evaluated = (trainer.score_answers(trainer.model.train(mode), batch) for mode in (True, False))
    assert torch.equal(learnt, evaluated)
    after = dict(trainer.model.named_parameters())
    assert [name for name in before if torch.equal(before[name], after[name]) and "lora_A" not in name] == []
    trainer.save_model(tmp_path / "saved")
    loaded, _ = load_reward_model(str(tmp_path / "saved"))
    (head,) = [tensor for name, tensor in after.items() if name.endswith("score.modules_to_save.default.weight")]
    assert torch.equal(loaded.state_dict()["base_model.model.score.modules_to_save.default.weight"], head.float())


def test_several_evaluation_sets_are_measured_each_by_its_name(make_trainer, rankings):
    sets = {"all": rankings, "some": rankings.select([1, 2, 5])}
    trainer = make_trainer(eval_dataset=sets)
    metrics = trainer.evaluate()
    assert metrics["eval_all_num_pairs"] > metrics["eval_some_num_pairs"]
    for name, dataset in sets.items():
        alone = make_trainer(eval_dataset=dataset).evaluate()
        for figure in ("loss", "pair_accuracy", "spearman", "reward_std", "num_pairs"):
            assert metrics[f"eval_{name}_{figure}"] == pytest.approx(alone[f"eval_{figure}"], abs=1e-6)
    rewards = trainer.predict(trainer.eval_dataset["all"]).predictions
    assert rewards.shape == (8, 4)


def test_model_and_tokenizer_load_by_name_as_in_trl(make_trainer, reward_model, tokenizer, rankings, tmp_path):
    reward_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    args = make_trainer(prefix_sharing=True).args
    by_name = KWiseRewardTrainer(str(tmp_path / "model"), args=args, train_dataset=rankings, eval_dataset=rankings)
    assert by_name.evaluate()["eval_loss"] == pytest.approx(make_trainer().evaluate()["eval_loss"], abs=1e-5)


def test_a_margin_changes_the_objective_of_training_only(make_trainer):
    plain, with_margin = make_trainer(folder="plain"), make_trainer(folder="margin", margin_coefficient=0.5)
    assert with_margin.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"])
    assert with_margin.train().training_loss > plain.train().training_loss + 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(loss_type="listwise"), "loss_type must be one of pairwise, .*, tokenwise, regression; got 'listwise'"),
        (dict(margin_coefficient=-0.1), "margin_coefficient must be 0 or more; got -0.1"),
        (dict(margin_coefficient=1.0, loss_type="plackett_luce"), "margin_coefficient needs loss_type 'pairwise'"),
        (dict(prefix_sharing=True, loss_type="tokenwise"), "Switch prefix_sharing off"),
        (dict(eval_do_concat_batches=False), "eval_do_concat_batches must be true"),
        (dict(margin_coefficient=float("nan")), "margin_coefficient must be 0 or more; got nan"),
        (dict(max_row_tokens=0), "max_row_tokens must be 1 or more; got 0"),
        (dict(train_sampling_strategy="batch_rebalance"), "random, sequential, group_by_length; got 'batch_rebalance'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        KWiseRewardConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_length_buckets_hold_every_example_once_similar_ones_together_in_another_order_each_epoch():
    lengths = [(7 * index) % 101 for index in range(101)]
    orders = [list(LengthBucketSampler(lengths, 4, seed=3, current_epoch=lambda e=epoch: e)) for epoch in (0, 0, 1)]
    assert sorted(orders[0]) == list(range(101))
    assert orders[0] == orders[1] != orders[2]
    spreads = [
        max(chunk) - min(chunk) for chunk in ([lengths[i] for i in orders[0][s : s + 4]] for s in range(0, 100, 4))
    ]
    # Sorted, neighbours are at most 1 or 2 apart (the example left over for the last batch leaves a gap).
    assert max(spreads) <= 4
    assert [lengths[i] for i in orders[0][:100]] != sorted(lengths[i] for i in orders[0][:100])


def test_batches_hold_similar_lengths_by_default_and_any_with_prefix_sharing(make_trainer):
    assert isinstance(make_trainer()._get_train_sampler(), LengthBucketSampler)
    assert not isinstance(make_trainer(prefix_sharing=True)._get_train_sampler(), LengthBucketSampler)


def test_a_run_resumed_in_its_second_epoch_ends_with_the_same_bits(make_trainer, trained_weights):
    options = dict(per_device_train_batch_size=2, max_steps=7, optim="adamw_torch", learning_rate=1e-3)
    whole = make_trainer(folder="whole", save_strategy="steps", save_steps=5, **options)
    expected = trained_weights(whole)
    resumed = make_trainer(folder="resumed", **options)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-5")
    for name, parameter in weights(resumed).items():
        assert torch.equal(parameter, expected[name]), name


def test_the_saved_folder_says_what_ppo_has_to_know(make_trainer, tokenizer, tmp_path):
    trainer = make_trainer(loss_type="plackett_luce")
    metrics = trainer.evaluate()
    trainer.save_model(tmp_path / "saved")
    card = read_reward_card(tmp_path / "saved")
    assert (card.loss_type, card.max_answers) == ("plackett_luce", 4)
    assert (card.pad_token_id, card.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert card.score_mean == pytest.approx(metrics["eval_reward_mean"])
    assert card.score_std == pytest.approx(metrics["eval_reward_std"])
    check_reward_card(card, tokenizer, "policy")
    assert read_reward_card(tmp_path) is None

    # Weights that have moved on are not those that were evaluated.
    trainer.train()
    trainer.save_model(tmp_path / "later")
    assert read_reward_card(tmp_path / "later").score_statistics == dict.fromkeys(card.score_statistics)


def test_the_card_of_a_model_on_the_hub_is_read_and_missed_aloud(tokenizer, tmp_path, monkeypatch, caplog):
    # What the client keeps of a repository that it has loaded.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--who--reward"
    (repository / "snapshots" / "11").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("11")
    assert read_reward_card("who/reward") is None
    assert "who/reward: no reward_card.json could be fetched, so no tokenizer is checked against it" in caplog.text
    card = RewardCard.describe(tokenizer, loss_type="pairwise", max_answers=4, score_mean=0.5, score_std=2.0)
    card.save(repository / "snapshots" / "11")
    assert read_reward_card("who/reward") == card


def test_the_card_describes_the_best_model_if_that_is_the_one_that_is_saved(make_trainer, tmp_path):
    trainer = make_trainer(
        max_steps=3,
        # Far too high, so that the first step is the best one.
        learning_rate=20.0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
    )
    trainer.train()
    assert trainer.state.best_global_step < 3
    trainer.save_model(tmp_path / "saved")
    card = read_reward_card(tmp_path / "saved")
    metrics = trainer.evaluate()
    assert card.score_mean == pytest.approx(metrics["eval_reward_mean"], rel=1e-5)
    assert card.score_std == pytest.approx(metrics["eval_reward_std"], rel=1e-5)


def test_another_tokenizer_is_refused_and_every_difference_named(tokenizer):
    card = RewardCard.describe(tokenizer, loss_type="pairwise", max_answers=4)
    tokenizer.add_tokens(["<新>"])
    tokenizer.pad_token = "<mask>"
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ValueError) as error:
        check_reward_card(card, tokenizer, "models/policy")
    message = str(error.value)
    assert message.startswith("models/policy: its tokenizer must be the one that the reward model was trained with")
    assert f"the vocabulary ({card.vocab_size} tokens there, {card.vocab_size + 1} here)" in message
    assert f"the pad id ({card.pad_token_id} there, {tokenizer.pad_token_id} here)" in message
    assert "the chat template" in message and "end of sequence" not in message


def test_a_broken_card_is_refused_with_its_path(tmp_path):
    (tmp_path / REWARD_CARD_FILE).write_text(json.dumps({"loss": "pairwise"}), "utf-8")
    with pytest.raises(ValueError, match=rf"{REWARD_CARD_FILE}: a reward card is a JSON object with loss_type"):
        read_reward_card(tmp_path)


ANSWERS = {"responses": ["好。", "不好。"], "scores": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": ["好。", "好。"]}, r"train row 2: 'responses\[1\]' must differ from 'responses\[0\]'"),
        ({"responses": ["好。", " "]}, r"train row 2: 'responses\[1\]' must be text that is not empty"),
        ({"responses": ["好。"], "scores": [1.0]}, "train row 2: 'responses' must be a list of at least 2"),
        ({"scores": [1.0, float("nan")]}, r"train row 2: 'scores\[1\]' must be a finite number"),
        ({"prompt": "好" * 200}, "train row 2: the prompt must leave room for an answer within max_length = 128"),
    ],
    ids=["equal answers", "empty answer", "one answer", "NaN score", "no room"],
)
def test_bad_rankings_are_refused_with_their_row(make_trainer, change, message):
    records = [{"prompt": "总体来说，", **ANSWERS} for _ in range(4)]
    records[2] |= change
    with pytest.raises(ValueError, match=message):
        make_trainer(Dataset.from_list(records))


def test_scores_that_are_texts_are_refused(make_trainer):
    with pytest.raises(ValueError, match=r"train row 0: 'scores\[0\]' must be a finite number; got '1' \(str\)"):
        make_trainer(Dataset.from_list([{"prompt": "好吗？", "responses": ["好。", "不。"], "scores": ["1", "0"]}]))


def test_rankings_with_a_longer_answer_are_left_out_and_counted(make_trainer, caplog):
    records = [{"prompt": "总体来说，", **ANSWERS} for _ in range(4)]
    records[1]["responses"] = ["好。", "好" * 200]
    trainer = make_trainer(Dataset.from_list(records))
    assert len(trainer.train_dataset) == 3
    assert "1 of 4 rankings left out" in caplog.text


def test_chat_messages_and_pairs_without_a_prompt_train_too(make_trainer, tokenizer):
    user, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "好吗？"), *[("assistant", t) for t in "好差"])
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    ranking = {"prompt": [user], "responses": [[good], [bad]], "scores": [1.0, 0.0]}
    explicit = make_trainer(Dataset.from_list([ranking] * 8), folder="explicit")
    implicit = make_trainer(
        Dataset.from_list([{"chosen": [user, good], "rejected": [user, bad]}] * 8), folder="implicit"
    )
    assert explicit.train_dataset[0] == implicit.train_dataset[0]
    assert explicit.train().training_loss == pytest.approx(implicit.train().training_loss)
    text = make_trainer(Dataset.from_list([{"chosen": "好吗？好", "rejected": "好吗？差"}] * 8), folder="text")
    assert text.train_dataset[0]["prompt_input_ids"] == tokenizer("好吗？", add_special_tokens=False)["input_ids"]
