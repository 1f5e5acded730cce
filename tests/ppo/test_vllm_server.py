"""Answers of a vLLM server, which a stub of its protocol stands in for: what is asked, sent, learnt and refused."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from vllm_stub import VLLMStub

from pangu_trl import GPTPanguForCausalLM
from pangu_trl.ppo.generation.generate import generate_rollout
from pangu_trl.ppo.generation.plain_weights import plain_weights
from pangu_trl.ppo.rollout import Rollout

VOCABULARY = 250
STOPS = list(range(0, VOCABULARY, 11))


@pytest.fixture(autouse=True)
def large_weights(policy):
    """The best token is then no matter of rounding, and another one at every place."""
    torch.manual_seed(4)
    for parameter in policy.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    # Some answers then end before their limit.
    policy.generation_config.eos_token_id = STOPS


@pytest.fixture
def stub(tiny_config, monkeypatch):
    torch.manual_seed(5)
    with VLLMStub(GPTPanguForCausalLM(copy.deepcopy(tiny_config))) as server:
        server.connect(monkeypatch)
        yield server


@pytest.fixture
def make_served(make_trainer, stub):
    """A trainer whose policy the stub samples from."""

    def make(layout: str = "full", **options):
        served = dict(rollout_engine="vllm", vllm_server_base_url=stub.url, vllm_server_timeout=0.0)
        return make_trainer(layout, **served | options)

    return make


def prompt_ids(trainer) -> list[list[int]]:
    return [row["prompt_input_ids"] for row in trainer.train_dataset]


def randomise_adapters(trainer) -> None:
    """New adapters add nothing until they have learnt."""
    torch.manual_seed(6)
    for name, parameter in trainer.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    # The reference stays what the policy was.
    trainer.collector.reference_is_start = False


def assert_same_rollout(found: Rollout, expected: Rollout) -> None:
    assert vars(found).keys() == vars(expected).keys()
    for name, tensor in vars(expected).items():
        other = getattr(found, name)
        assert tensor is other is None or torch.equal(other, tensor), name


def test_answers_that_the_server_repeats_make_the_same_rollout(make_trainer, make_served, stub, layout):
    trainer = make_trainer(layout, generation_batch_size=5)
    torch.manual_seed(0)
    prompts = prompt_ids(trainer)
    expected = generate_rollout(trainer.model, trainer.processing_class, prompts, trainer.args, trainer.accelerator)
    assert expected.ended.any() and not expected.ended.all()
    answers = dict(zip(map(tuple, prompts), expected.completions(), strict=True))
    stub.answer = lambda prompt, body: (answers[tuple(prompt)], [0.0] * len(answers[tuple(prompt)]))
    served = make_served(layout)
    assert_same_rollout(served.collector.answer(served.model, list(served.train_dataset)), expected)


def test_training_on_the_servers_answers_ends_where_training_on_generated_ones_does(make_trainer, make_served, layout):
    options = dict(top_k=1, max_steps=12, num_generations=2, learning_rate=3e-2)
    served, generated = make_served(layout, **options), make_trainer(layout, **options)
    for trainer in (served, generated):
        randomise_adapters(trainer)
        trainer.train()
    for (name, found), (_, expected) in zip(
        served.model.named_parameters(), generated.model.named_parameters(), strict=True
    ):
        assert torch.equal(found, expected), name
    assert_same_rollout(served.passes.rollout, generated.passes.rollout)


def test_the_server_gets_the_weights_of_the_plain_model_bit_for_bit(make_served, stub, layout):
    trainer = make_served(layout)
    randomise_adapters(trainer)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.collector.answer(trainer.model, list(trainer.train_dataset))
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    plain = copy.deepcopy(trainer.model.policy)
    if hasattr(plain, "merge_and_unload"):
        plain = plain.merge_and_unload(adapter_names=["default"])
    expected = dict(plain.named_parameters())
    (received,) = stub.received
    assert received.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(received[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["tied GPT-2", "untied Llama"])
@pytest.mark.parametrize("with_lora", [False, True])
def test_names_and_bits_are_those_of_a_saved_model_in_other_families(family, with_lora, dtype, tmp_path):
    size = dict(vocab_size=60, bos_token_id=None, eos_token_id=1)
    if family == "tied GPT-2":
        config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=32, **size)
    else:
        size |= dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        config = LlamaConfig(tie_word_embeddings=False, **size)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    if with_lora:
        model = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False))
    found = {weight.name: (weight.announcement[1:], weight.read().clone()) for weight in plain_weights(model)}
    plain = model.merge_and_unload() if with_lora else model
    plain.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).state_dict()
    assert saved.keys() - found.keys() == ({"lm_head.weight"} if family == "tied GPT-2" else set())
    for name, (announced, tensor) in found.items():
        assert announced == (str(dtype).removeprefix("torch."), list(saved[name].shape))
        assert torch.equal(tensor, saved[name]), name


def test_the_server_is_asked_for_what_generate_would_be(make_served, stub):
    trainer = make_served(temperature=0.7, top_p=0.9, top_k=3, max_completion_length=5)
    prompts = prompt_ids(trainer)
    trainer.collector.answer(trainer.model, list(trainer.train_dataset))
    assert sorted(request["prompt"] for request in stub.requests) == sorted([prompt] for prompt in prompts)
    assert trainer.processing_class.pad_token_id not in sum(prompts, [])
    stops = sorted({*STOPS, trainer.processing_class.eos_token_id})
    asked = dict(n=1, temperature=0.7, top_p=0.9, top_k=3, min_p=0.0, repetition_penalty=1.0, max_tokens=5)
    asked |= dict(stop_token_ids=stops, ignore_eos=True)
    for request in stub.requests:
        assert {name: request[name] for name in asked} == asked
    seeds = [request["seed"] for request in stub.requests]
    assert len(set(seeds)) == len(prompts)


def test_a_resumed_run_asks_with_the_seeds_of_the_whole_one(make_served, stub):
    options = dict(max_steps=8, save_strategy="steps", save_steps=3)
    make_served(**options).train()
    whole = sorted((request["prompt"], request["seed"]) for request in stub.requests)
    stub.requests.clear()
    resumed = make_served(**options)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-3")
    # Step 3 is in the middle of the first rollout, which the checkpoint holds.
    assert len({seed for _, seed in whole}) == 8 and len(stub.requests) == 4
    assert all((request["prompt"], request["seed"]) in whole for request in stub.requests)


def test_weights_are_sent_once_after_they_changed_and_before_they_are_needed(make_served, stub):
    trainer = make_served(max_steps=8, eval_strategy="steps", eval_steps=4, eval_on_start=True)
    stub.calls.clear()
    trainer.train()
    # Rollouts at steps 0 and 4, the first after an evaluation of the same weights, as the one at 4 is; the last at 8.
    update = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]
    assert stub.calls == update * 3
    wte = [received["transformer.wte.weight"] for received in stub.received]
    assert not torch.equal(wte[0], wte[1]) and not torch.equal(wte[1], wte[2])
    assert torch.equal(wte[2], trainer.model.policy.transformer.wte.weight)
    trainer.evaluate()
    assert stub.calls == update * 4, "best weights may have been loaded after training"


def test_an_evaluation_asks_the_server_for_the_policys_answers_alone(make_trainer, make_served, stub, layout):
    options = dict(max_steps=4, top_k=1, learning_rate=3e-3)
    served, generated = make_served(layout, **options), make_trainer(layout, **options)
    for trainer in (served, generated):
        trainer.train()
    stub.requests.clear()
    metrics = served.evaluate()
    assert len(stub.requests) == len(served.eval_dataset)
    assert metrics == generated.evaluate()
    assert metrics["eval_kl/mean"] > 0


def sampling_gaps(trainer) -> list[float]:
    trainer.train()
    return [entry["policy/sampling_gap"] for entry in trainer.state.log_history if "policy/sampling_gap" in entry]


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("raw_logprobs", dict(top_k=2)),
        ("processed_logprobs", dict(temperature=0.7)),
        ("processed_logprobs", dict(temperature=1.0)),
    ],
)
def test_the_servers_log_probabilities_are_compared_where_they_mean_the_same(make_served, stub, caplog, mode, options):
    stub.model_config["logprobs_mode"] = mode
    gaps = sampling_gaps(make_served(max_steps=1, **options))
    assert gaps and max(gaps) < 1e-5
    assert "sampling_gap" not in caplog.text


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("raw_logprobs", dict(temperature=0.7)),
        ("processed_logprobs", dict(top_k=2)),
        ("processed_logprobs", dict(top_p=0.9)),
        ("raw_logits", {}),
    ],
)
def test_log_probabilities_of_another_distribution_are_not_compared_and_the_log_says_so(
    make_served, stub, caplog, mode, options
):
    stub.model_config["logprobs_mode"] = mode
    assert not sampling_gaps(make_served(max_steps=1, **options))
    assert f"policy/sampling_gap is left out: with {mode} vLLM gives" in caplog.text
    assert {request["logprobs"] for request in stub.requests} == {None}


def test_a_server_that_samples_from_other_weights_is_warned_of(make_served, stub, caplog):
    stub._take_over = lambda: None
    make_served(max_steps=1).train()
    assert "log-probabilities of sampled tokens differ" in caplog.text
    assert "vLLM in another dtype" in caplog.text


def test_the_log_says_that_a_server_samples(make_served, stub, caplog):
    caplog.set_level("INFO")
    make_served("lora", max_steps=1).train()
    expected = (
        f"Generation: vLLM server at {stub.url}, which gets the policy's weights before each rollout, LoRA added."
    )
    assert expected in caplog.messages


@pytest.mark.parametrize("module", ["vllm", "requests"])
def test_a_missing_client_is_named(make_served, monkeypatch, module):
    monkeypatch.setattr(f"pangu_trl.ppo.generation.vllm_server.is_{module}_available", lambda: False)
    with pytest.raises(
        ImportError, match=rf"rollout_engine='vllm' needs the package {module} .* pip install 'trl\[vllm\]'"
    ):
        make_served()


def test_a_server_that_is_not_there_is_named_with_how_to_start_one(make_served, stub):
    with pytest.raises(RuntimeError, match=r"vLLM server at http://127.0.0.1:1: .*can't be reached.* vllm serve MODEL"):
        make_served(vllm_server_base_url="http://127.0.0.1:1")


def test_a_device_that_weights_cannot_be_sent_from_is_named(make_served, stub, monkeypatch):
    def refuse(client, device):
        raise NotImplementedError(f"needs a CUDA device, got '{device}'")

    monkeypatch.setattr("trl.generation.vllm_client.VLLMClient.init_communicator", refuse)
    with pytest.raises(RuntimeError, match="needs a CUDA device, got 'cpu'"):
        make_served()


def test_a_server_of_another_model_is_refused(make_served, stub):
    stub.model_config["hf_config"] = {"vocab_size": VOCABULARY + 10}
    with pytest.raises(RuntimeError, match=f"a vocabulary of {VOCABULARY + 10} tokens, the policy has {VOCABULARY}"):
        make_served()
    # A default size may be left out of the text of a configuration; then nothing is known.
    stub.model_config["hf_config"] = "GPT2Config {}"
    make_served()
    stub.model_config["max_model_len"] = 55
    with pytest.raises(RuntimeError, match=r"max_completion_length = 56 is more than the 55 tokens"):
        make_served()


def test_answers_that_the_policy_could_not_have_given_stop_the_run(make_served, stub):
    trainer = make_served()
    plain, stop = 31, STOPS[1]
    went_on, too_long, ended_early = [plain, stop, plain, stop], [plain] * 9, [plain]
    for answer in ([], ended_early, went_on, too_long, [plain, VOCABULARY, stop]):
        stub.answer = lambda prompt, body, answer=answer: (answer, [0.0] * len(answer))
        with pytest.raises(
            RuntimeError, match=rf"an answer must be up to 8 tokens below 250 .*; got \[{str(answer)[1:-1]}\]"
        ):
            trainer.collector.answer(trainer.model, list(trainer.train_dataset))
    stub.answer = lambda prompt, body: ([plain] * 7 + [stop], [0.0] * 8)
    assert trainer.collector.answer(trainer.model, list(trainer.train_dataset)).ended.all()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (dict(use_dora=True), "transformer.h.0.attn"),
        (dict(lora_bias=True), "transformer.h.0.attn"),
        (dict(modules_to_save=["ln_f"]), "transformer.ln_f"),
        (dict(target_modules=["wte"]), "transformer.wte"),
    ],
)
def test_an_adapter_that_cannot_be_added_to_the_weights_is_refused(make_served, stub, options, part):
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **options)
    with pytest.raises(
        ValueError, match=rf"rollout_engine='vllm' sends .* cannot be added: {part}.*or leave out rollout_engine"
    ):
        make_served("lora", models=dict(peft_config=config))
    assert not stub.calls


def test_a_server_that_fails_stops_the_run_with_its_words(make_served, stub):
    trainer = make_served(max_steps=1)
    stub.answer = lambda prompt, body: 1 / 0
    with pytest.raises(RuntimeError, match="Request failed: 400, ZeroDivisionError"):
        trainer.train()


def test_answers_of_an_engine_with_other_probabilities_are_weighed_by_what_it_says(make_served, stub):
    own = stub.answer

    def other_probabilities(prompt, body):
        # Half as likely as the policy has them.
        tokens, logprobs = own(prompt, body)
        return tokens, [value - math.log(2.0) for value in logprobs]

    stub.answer = other_probabilities
    correction = dict(vllm_importance_sampling_correction=True, vllm_importance_sampling_mode="token_truncate")
    trainer = make_served(max_steps=1, **correction)
    trainer.train()
    rollout = trainer.passes.rollout
    expected = torch.where(rollout.completion_mask, 2.0, 1.0)
    torch.testing.assert_close(rollout.importance_weights, expected, atol=1e-3, rtol=0)
    logged = next(entry for entry in trainer.state.log_history if "importance/mean" in entry)
    assert logged["importance/mean"] == pytest.approx(2.0, abs=1e-3)
    assert logged["importance/bounded"] == 0.0


def test_a_correction_by_probabilities_of_another_distribution_is_refused(make_served, stub):
    stub.model_config["logprobs_mode"] = "processed_logprobs"
    with pytest.raises(RuntimeError, match="with processed_logprobs those are of another distribution"):
        make_served(vllm_importance_sampling_correction=True, top_k=2)
