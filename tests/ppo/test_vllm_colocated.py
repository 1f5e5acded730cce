"""Answers of a vLLM in the training's process, which a stand-in takes the place of: TRL's class around it is real."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import vllm_fake
from accelerate.utils import set_seed
from transformers import GPT2Config, GPT2LMHeadModel

from pangu_trl import PPOConfig
from pangu_trl.ppo.engine_gap import watch_of
from pangu_trl.ppo.generation import vllm_colocated
from pangu_trl.ppo.generation.vllm_colocated import VLLMColocated

VOCABULARY = 250
STOPS = list(range(0, VOCABULARY, 11))
SLEEPS, STAYS = pytest.param(True, id="sleeps"), pytest.param(False, id="stays awake")


@pytest.fixture(autouse=True)
def start(policy, tokenizer, tmp_path):
    """A folder that vLLM can start from; its weights are not those of the policy, nor are its ends of answers."""
    folder = tmp_path / "start"
    torch.manual_seed(4)
    for parameter in policy.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    policy.generation_config.eos_token_id = list(range(1, VOCABULARY, 3))
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    add_code(folder)
    policy.generation_config.eos_token_id = STOPS
    policy.name_or_path = policy.config._name_or_path = str(folder)
    return folder


def add_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoModel": "modeling_gptpangu.GPTPanguModel"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


@pytest.fixture
def started(monkeypatch):
    return vllm_fake.install(monkeypatch)


@pytest.fixture
def make_colocated(request, make_trainer, started, tmp_path):
    """A trainer whose policy a vLLM in its process samples from."""

    def make(layout: str = "full", **options):
        if layout == "one backbone":
            # The reward adapter's base, which the policy is then loaded from.
            request.getfixturevalue("reward_adapter")
            add_code(tmp_path / "base")
        colocated = dict(rollout_engine="vllm", vllm_mode="colocate", vllm_model_impl="transformers")
        colocated["vllm_trust_remote_code"] = True
        return make_trainer(layout, **colocated | options)

    return make


def randomise_adapters(trainer) -> None:
    """New adapters add nothing until they have learnt."""
    torch.manual_seed(6)
    for name, parameter in trainer.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    # The reference stays what the policy was.
    trainer.collector.reference_is_start = False


def answered(trainer, examples=None, **options):
    examples = list(trainer.train_dataset) if examples is None else examples
    return trainer.collector.answer(trainer.model, examples, **options)


def plain_policy(trainer) -> torch.nn.Module:
    plain = copy.deepcopy(trainer.model.policy)
    return plain.merge_and_unload(adapter_names=["default"]) if hasattr(plain, "merge_and_unload") else plain


@pytest.mark.parametrize("sleeps", [SLEEPS, STAYS])
def test_training_on_its_answers_ends_where_training_on_generated_ones_does(
    make_trainer, make_colocated, layout, sleeps
):
    options = dict(top_k=1, max_steps=12, num_generations=2, learning_rate=3e-2)
    colocated = make_colocated(layout, vllm_enable_sleep_mode=sleeps, **options)
    generated = make_trainer(layout, **options)
    for trainer in (colocated, generated):
        randomise_adapters(trainer)
        ended = answered(trainer).ended
        assert ended.any() and not ended.all()
        trainer.train()
    for (name, found), (_, expected) in zip(
        colocated.model.named_parameters(), generated.model.named_parameters(), strict=True
    ):
        assert torch.equal(found, expected), name
    assert colocated.evaluate() == generated.evaluate()


@pytest.mark.parametrize("sleeps", [SLEEPS, STAYS])
def test_it_gets_the_weights_of_the_plain_policy_bit_for_bit(make_colocated, started, layout, sleeps):
    trainer = make_colocated(layout, vllm_enable_sleep_mode=sleeps)
    randomise_adapters(trainer)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    answered(trainer)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    expected = dict(plain_policy(trainer).named_parameters())
    (received,) = started[0].received
    assert received.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(received[name], tensor), name


@pytest.mark.parametrize("sleeps", [SLEEPS, STAYS])
def test_weights_are_sent_once_after_they_changed_and_whenever_it_slept(make_colocated, started, sleeps):
    options = dict(max_steps=8, eval_strategy="steps", eval_steps=4, eval_on_start=True)
    trainer = make_colocated(vllm_enable_sleep_mode=sleeps, per_device_eval_batch_size=12, **options)
    trainer.train()
    (llm,) = started
    # Rollouts at steps 0 and 4, evaluations at 0, 4 and 8.
    if sleeps:
        answer = ["wake weights", "weights", "reset", "wake kv_cache", "generate", "sleep"]
        assert llm.calls == ["sleep", *answer * 5]
    else:
        new, same = ["weights", "reset", "generate"], ["generate"]
        assert llm.calls == new + same + new + same + new
    wte = [received["transformer.wte.weight"] for received in llm.received]
    assert not torch.equal(wte[0], wte[-2]) and not torch.equal(wte[-2], wte[-1])
    assert torch.equal(wte[-1], trainer.model.policy.transformer.wte.weight)
    num_sent = len(llm.received)
    trainer.evaluate()
    assert len(llm.received) == num_sent + 1, "best weights may have been loaded after training"


@pytest.mark.parametrize("sleeps", [SLEEPS, STAYS])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_its_log_probabilities_are_those_that_are_learnt(make_colocated, layout, temperature, sleeps):
    trainer = make_colocated(layout, temperature=temperature, max_steps=8, vllm_enable_sleep_mode=sleeps)
    randomise_adapters(trainer)
    trainer.train()
    gaps = [entry["policy/sampling_gap"] for entry in trainer.state.log_history if "policy/sampling_gap" in entry]
    # A rollout of the start, and one of what was learnt from it.
    assert len(gaps) == 2 and max(gaps) < 1e-5


def test_stale_weights_are_warned_of(make_colocated, started, caplog, monkeypatch):
    trainer = make_colocated(max_steps=8, learning_rate=3e-3)
    monkeypatch.setattr(VLLMColocated, "on_optimizer_step", lambda *_, **__: None)
    trainer.train()
    assert "log-probabilities of sampled tokens differ" in caplog.text
    assert len(started[0].received) == 1


def test_it_is_asked_for_what_generate_would_be(make_colocated, started, tokenizer):
    trainer = make_colocated(temperature=0.7, top_k=3, max_completion_length=5, generation_batch_size=6)
    answered(trainer)
    (llm,) = started
    expected = dict(n=1, temperature=0.7, top_p=1.0, top_k=3, min_p=0.0, repetition_penalty=1.0, max_tokens=5)
    expected |= dict(stop_token_ids=sorted({*STOPS, tokenizer.eos_token_id}), ignore_eos=True, logprobs=None)
    assert [prompt for prompt, _ in llm.requests] == [row["prompt_input_ids"] for row in trainer.train_dataset]
    for _, params in llm.requests:
        assert {name: getattr(params, name) for name in expected} == expected


def test_it_is_started_as_the_options_say(make_colocated, started):
    options = dict(vllm_gpu_memory_utilization=0.4, vllm_enable_sleep_mode=True, generation_batch_size=6)
    make_colocated(**options)
    make_colocated()
    common = dict(tensor_parallel_size=1, model_impl="transformers", max_model_len=48 + 8, trust_remote_code=True)
    for llm, own in zip(started, [(0.4, True, 6), (0.3, False, None)], strict=True):
        names = ("gpu_memory_utilization", "enable_sleep_mode", "max_num_seqs")
        expected = common | dict(zip(names, own, strict=True))
        assert {name: llm.options[name] for name in expected} == expected


def test_equal_prompts_get_answers_of_their_own(make_colocated, started):
    trainer = make_colocated()
    rollout = answered(trainer, [trainer.train_dataset[0]] * 6)
    assert len(set(map(tuple, rollout.completions()))) > 1
    assert len({params.seed for _, params in started[0].requests}) == 6


def test_a_resumed_run_asks_with_the_seeds_of_the_whole_one(make_colocated, started):
    options = dict(max_steps=8, save_strategy="steps", save_steps=3)
    whole = make_colocated(**options)
    whole.train()
    resumed = make_colocated(**options)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-3")
    asked = [[(prompt, params.seed) for prompt, params in llm.requests] for llm in started]
    # Step 3 is in the middle of the first rollout, which the checkpoint holds.
    assert len({seed for _, seed in asked[0]}) == 8 and asked[1] == asked[0][4:]
    for (name, found), (_, expected) in zip(
        resumed.model.named_parameters(), whole.model.named_parameters(), strict=True
    ):
        assert torch.equal(found, expected), name


def test_the_runs_random_numbers_are_those_of_its_own_seed(make_colocated):
    make_colocated(seed=7)
    found = torch.rand(3)
    set_seed(7, device_specific=True)
    assert torch.equal(found, torch.rand(3))


def test_groups_that_are_drawn_anew_are_answered_by_the_same_weights(make_colocated, started):
    options = dict(advantage_estimator="grpo", num_generations=2, dynamic_sampling_rounds=1)
    reward = dict(reward_model=lambda prompts, completions, **_: [0.0] * len(prompts))
    trainer = make_colocated(max_steps=1, models=reward, vllm_enable_sleep_mode=True, **options)
    trainer.train()
    first, again = started[0].received
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_answers_of_other_probabilities_are_weighed_by_what_it_says(make_colocated, monkeypatch):
    own = vllm_fake.VLLMFake.answer

    def other_probabilities(llm, prompt, params):
        # Half as likely as the policy has them.
        tokens, logprobs = own(llm, prompt, params)
        for place in logprobs:
            for found in place.values():
                found.logprob -= math.log(2.0)
        return tokens, logprobs

    monkeypatch.setattr(vllm_fake.VLLMFake, "answer", other_probabilities)
    correction = dict(vllm_importance_sampling_correction=True, vllm_importance_sampling_mode="token_truncate")
    trainer = make_colocated(max_steps=1, **correction)
    trainer.train()
    rollout = trainer.passes.rollout
    expected = torch.where(rollout.completion_mask, 2.0, 1.0)
    torch.testing.assert_close(rollout.importance_weights, expected, atol=1e-3, rtol=0)


def test_the_log_says_where_answers_are_sampled(make_colocated, caplog):
    caplog.set_level("INFO")
    make_colocated("lora", max_steps=1).train()
    expected = "Generation: vLLM in the training's processes, which gets the policy's weights before each rollout, LoRA"
    assert expected in caplog.text


def test_log_probabilities_of_another_distribution_are_not_compared(make_colocated, started, caplog):
    trainer = make_colocated(max_steps=1, top_k=2)
    trainer.train()
    assert not any("policy/sampling_gap" in entry for entry in trainer.state.log_history)
    assert "policy/sampling_gap is left out: with processed_logprobs vLLM gives" in caplog.text
    started.clear()
    with pytest.raises(ValueError, match="vllm_mode='colocate': .*another distribution.* Leave top_p and top_k alone"):
        make_colocated(vllm_importance_sampling_correction=True, top_k=2)
    assert not started


def test_answers_that_the_policy_could_not_have_given_stop_the_run(make_colocated, monkeypatch):
    trainer = make_colocated(top_k=2)
    plain, stop = 31, STOPS[1]
    went_on, too_long, ended_early = [plain, stop, plain, stop], [plain] * 9, [plain]
    for answer in ([], ended_early, went_on, too_long, [plain, VOCABULARY, stop]):
        monkeypatch.setattr(vllm_fake.VLLMFake, "answer", lambda llm, prompt, params, answer=answer: (answer, []))
        with pytest.raises(RuntimeError, match="colocated vLLM: an answer must be up to 8 tokens below 250"):
            answered(trainer)
    monkeypatch.setattr(vllm_fake.VLLMFake, "answer", lambda *_: ([plain] * 7 + [stop], []))
    assert answered(trainer).ended.all()


def test_a_policy_of_vllms_own_architectures_runs_on_its_code(make_colocated, started, tokenizer, tmp_path):
    torch.manual_seed(1)
    size = dict(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=None, eos_token_id=tokenizer.eos_token_id))
    model.save_pretrained(tmp_path / "gpt2")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2")
    trainer = make_colocated(
        models=dict(model=model), vllm_model_impl="vllm", vllm_trust_remote_code=False, max_steps=8
    )
    trainer.train()
    gaps = [entry["policy/sampling_gap"] for entry in trainer.state.log_history if "policy/sampling_gap" in entry]
    assert len(gaps) == 2 and max(gaps) < 1e-5
    assert (started[0].options["model_impl"], started[0].options["trust_remote_code"]) == ("vllm", False)


def test_a_missing_vllm_is_named(make_colocated, started, monkeypatch):
    monkeypatch.setattr(vllm_colocated, "is_vllm_available", lambda: False)
    with pytest.raises(ImportError, match=r"vllm_mode='colocate' .* lacks the package vllm. .*'trl\[vllm\]'"):
        make_colocated()


def test_a_run_on_the_cpu_is_refused(make_colocated, started, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(vllm_colocated, "is_vllm_available", lambda: True)
    with pytest.raises(ValueError, match="this run is on the CPU. Train on GPUs, set vllm_mode='server'"):
        make_colocated()
    assert not started


def test_groups_of_ranks_that_do_not_come_out_even_are_refused(make_colocated, started):
    with pytest.raises(ValueError, match="vllm_tensor_parallel_size must divide the processes .* got 2 and 1 proc"):
        make_colocated(vllm_tensor_parallel_size=2)
    assert not started


def test_a_policy_that_vllm_cannot_start_from_is_refused(make_colocated, started, policy, start):
    def refuse(match: str, **options) -> None:
        with pytest.raises(ValueError, match=match):
            make_colocated(**options)

    config = json.loads((start / "config.json").read_text("utf-8"))
    refuse("vLLM has no implementation of GPTPangu. Set vllm_model_impl='transformers'", vllm_model_impl="vllm")
    refuse("would have to run the code that .* brings. Look at it, then allow", vllm_trust_remote_code=False)
    (start / "config.json").write_text(json.dumps(config | {"vocab_size": 260}), "utf-8")
    refuse("a model with a vocabulary of 260 tokens, and the policy has 250. Save the policy")
    del config["auto_map"]
    (start / "config.json").write_text(json.dumps(config), "utf-8")
    refuse("its config.json has no auto_map. Start from a folder that `pangu-trl publish` wrote")
    (start / "config.json").unlink()
    refuse(f"starts vLLM from where the policy was loaded, and {start} has no config.json of a model. .* save_pretrain")
    policy.name_or_path = policy.config._name_or_path = "no/model"
    refuse("where the policy was loaded, and no/model has no config.json of a model. Save it and its tokenizer")
    policy.name_or_path = policy.config._name_or_path = ""
    refuse("name_or_path, and this policy has none. Save it and its tokenizer with save_pretrained")
    assert not started


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(vllm_mode="colocate"), "vllm_mode has no effect with rollout_engine='auto'; set rollout_engine='vllm'"),
        (dict(vllm_enable_sleep_mode=True), "vllm_enable_sleep_mode has no effect with rollout_engine='auto'"),
        (
            dict(rollout_engine="vllm", vllm_tensor_parallel_size=2),
            "vllm_tensor_parallel_size has no effect with vllm_mode='server'; set vllm_mode='colocate', .* Got 2",
        ),
        (dict(rollout_engine="vllm", vllm_gpu_memory_utilization=0.5), "no effect with vllm_mode='server'"),
        (dict(rollout_engine="vllm", vllm_model_impl="transformers"), "no effect with vllm_mode='server'"),
        (
            dict(rollout_engine="vllm", vllm_mode="colocate", vllm_group_port=5),
            "vllm_group_port has no effect with vllm_mode='colocate'; set vllm_mode='server', or leave .* Got 5",
        ),
        (dict(rollout_engine="vllm", vllm_mode="beside"), "vllm_mode must be one of server, colocate; got 'beside'"),
        (
            dict(rollout_engine="vllm", vllm_mode="colocate", vllm_model_impl="auto"),
            "vllm_model_impl must be one of vllm, transformers; got 'auto'",
        ),
        (
            dict(rollout_engine="vllm", vllm_mode="colocate", vllm_gpu_memory_utilization=1.5),
            "vllm_gpu_memory_utilization must be between 0 and 1; got 1.5",
        ),
        (
            dict(rollout_engine="vllm", vllm_mode="colocate", vllm_tensor_parallel_size=0),
            "vllm_tensor_parallel_size must be 1 or more; got 0",
        ),
    ],
)
def test_options_of_the_other_mode_are_refused_by_name(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_every_answer_of_a_rollout_is_watched_where_all_are_needed(make_colocated):
    trainer = make_colocated(vllm_importance_sampling_correction=True)
    examples = list(trainer.train_dataset)
    rollout = answered(trainer, examples, watch=watch_of(trainer.args, len(examples)))
    assert rollout.sampling_logprobs.shape == rollout.completion_mask.shape
    assert (rollout.sampling_logprobs[rollout.completion_mask] <= 0).all()
