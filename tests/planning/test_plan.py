"""`pangu-trl plan`: against numbers worked out by hand, DeepSpeed's estimators, and what autograd really saves."""

import runpy
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig

import pangu_trl
from pangu_trl.cli import main
from pangu_trl.planning.activations import activation_bytes, cache_bytes
from pangu_trl.planning.launch import Launch, read_launch
from pangu_trl.planning.models import count, load_config
from pangu_trl.planning.settings import read_settings
from pangu_trl.planning.states import ALWAYS, GENERATION, Precision, precision_of, trained_model
from pangu_trl.planning.traffic import step_transfers

ROOT = Path(__file__).parent.parent.parent
FLOAT32 = Precision(4, 4, 4, has_masters=False)
# Of PanGu-alpha 2.6B: word and two position tables, blocks of 12 H^2 weights and 13 H biases and norms, the last norm.
H, V, POSITIONS, BLOCKS = 2560, 40000, 1024, 32
PARAMETERS = V * H + 2 * POSITIONS * H + BLOCKS * (12 * H * H + 13 * H) + 2 * H


def test_weights_are_counted_as_by_hand():
    shape = count(load_config("pangu-2.6b"))
    assert shape.num_parameters == shape.num_trainable == PARAMETERS
    assert shape.num_in_blocks == BLOCKS * (12 * H * H + 13 * H)
    assert count(load_config("pangu-2.6b"), is_scoring=True).num_parameters == PARAMETERS + H
    # LoRA of rank 8 on two projections of a block: two matrices of 8 H each.
    lora = {"lora_r": 8, "lora_target_modules": ["q_proj", "k_proj"]}
    shape = count(load_config("pangu-2.6b"), lora=lora)
    assert (shape.num_trainable, shape.num_lora_inputs) == (BLOCKS * 2 * 2 * 8 * H, 2 * H)
    assert shape.num_mergeable == BLOCKS * 2 * H * H


def test_adapters_are_in_float32_over_weights_in_bfloat16(plan, tiny_config):
    text = "dtype: bfloat16\nuse_peft: true\nlora_r: 4\nlora_target_modules: [q_proj, c_fc]"
    found = plan("sft", Launch(1, "none", bf16=True), text)
    found = replace(found, config=tiny_config)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "c_fc"], task_type="CAUSAL_LM")
    model = get_peft_model(pangu_trl.GPTPanguForCausalLM(tiny_config).to(torch.bfloat16), adapter)
    sizes = {item.name: item.num_bytes for item in found.items}
    assert sizes["model: weights"] == sum(p.numel() * p.element_size() for p in model.parameters())
    learnt = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    assert (sizes["model: gradients"], sizes["model: optimiser states"]) == (learnt, 2 * learnt)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        # Codes of half a byte, and for 64 of them a scale of 4 bytes; or of one byte, with 4 for 256 of those.
        ("load_in_4bit: true", 0.5 + 4 / 64),
        ("load_in_4bit: true\nuse_bnb_nested_quant: true", 0.5 + 1 / 64 + 4 / (64 * 256)),
        ("load_in_8bit: true", 1),
    ],
)
def test_quantised_weights_are_counted_as_by_hand(plan, options, size):
    text = f"dtype: bfloat16\nuse_peft: true\nlora_r: 8\nlora_target_modules: [q_proj, k_proj]\n{options}"
    found = replace(plan("sft", Launch(1, "none", bf16=True), text), config=load_config("pangu-2.6b"))
    sizes = {item.name: item.num_bytes for item in found.items}
    # The matrices of the blocks, not the embeddings, which the head is tied to, nor norms and biases.
    matrices, adapter = BLOCKS * 12 * H * H, BLOCKS * 2 * 2 * 8 * H
    expected = matrices * size + (PARAMETERS - matrices) * 2 + adapter * 4
    assert sizes["model: weights"] == pytest.approx(expected, rel=1e-6)
    assert sizes["model: one layer's weights as numbers"] == 4 * H * H * 2


def test_bitsandbytes_takes_the_bytes_that_are_planned(plan, tiny_config, tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    text = "dtype: bfloat16\nuse_peft: true\nlora_r: 4\nlora_target_modules: [q_proj]\nload_in_4bit: true"
    tiny_config.hidden_size, tiny_config.intermediate_size = 64, 256
    found = replace(plan("sft", Launch(1, "none", bf16=True), text), config=tiny_config)
    pangu_trl.GPTPanguForCausalLM(tiny_config).save_pretrained(tmp_path)
    quantised = BitsAndBytesConfig(load_in_4bit=True)
    base = pangu_trl.GPTPanguForCausalLM.from_pretrained(tmp_path, quantization_config=quantised, dtype=torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    packed = [p for p in model.parameters() if isinstance(p, bnb.nn.Params4bit)]
    held += sum(p.quant_state.absmax.numel() * 4 for p in packed)
    sizes = {item.name: item.num_bytes for item in found.items}
    assert len(packed) > 4 and sizes["model: weights"] == held


@pytest.mark.parametrize("num_devices", [1, 8, 64])
def test_states_under_zero_are_those_of_deepspeeds_estimators(recipe, num_devices):
    shape, settings = count(load_config("pangu-2.6b")), recipe("sft")

    def states(sharding: str) -> int:
        launch = Launch(num_devices, sharding, bf16=True)
        items = trained_model("model", shape, settings, launch, precision_of(settings, launch))
        return sum(item.num_bytes for item in items if "bucket" not in item.name)

    _, expected = estimate_zero2_model_states_mem_needs(PARAMETERS, num_devices, 1, cpu_offload=False)
    assert states("zero2") == pytest.approx(expected, rel=1e-6)
    _, expected, layer = estimate_zero3_model_states_mem_needs(PARAMETERS, 0, num_devices, 1, cpu_offload=False)
    # The estimator for ZeRO-3 leaves out the 16-bit weights that a device holds besides their masters.
    assert states("zero3") == pytest.approx(expected + 2 * PARAMETERS / num_devices, rel=1e-6)


@pytest.mark.parametrize("lora", [None, {"lora_r": 4, "lora_dropout": 0.0}])
def test_activations_are_what_autograd_saves(tiny_config, lora):
    for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        setattr(tiny_config, name, 0.0)
    model = pangu_trl.GPTPanguForCausalLM(tiny_config)
    if lora is not None:
        model = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.0, task_type="CAUSAL_LM"))
        model.enable_input_require_grads()
    ids = torch.randint(10, 200, (2, 64))
    own = {parameter.data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    expected = activation_bytes(count(tiny_config, lora=lora), FLOAT32, ids.numel(), checkpoints=False)
    assert outputs.logits.requires_grad
    # Beyond the blocks there are the ends of the model, and small statistics of norms and attention.
    assert expected <= sum(saved.values()) <= expected * 1.15


def test_a_cache_has_keys_and_values_of_every_block_and_token():
    assert cache_bytes(count(load_config("pangu-2.6b")), 4, 100) == 2 * BLOCKS * H * 100 * 4


def test_ddp_keeps_buckets_as_large_as_the_gradients(plan):
    sizes = {item.name: item.num_bytes for item in plan("sft", Launch(8, "ddp", bf16=True)).items}
    assert sizes["model: buckets of DDP"] == sizes["model: gradients"] == 4 * PARAMETERS
    assert sizes["model: optimiser states"] == 8 * PARAMETERS


@pytest.mark.parametrize(
    ("layout", "models"),
    [
        ("share_backbone: none", {"policy", "critic", "reference", "reward model"}),
        ("share_backbone: value", {"policy and critic", "reference", "reward model"}),
        ("share_backbone: none\nuse_peft: true", {"policy", "critic", "reward model"}),
        ("share_backbone: all\nuse_peft: true", {"policy and critic"}),
    ],
)
def test_ppo_holds_the_models_of_its_layout(plan, layout, models):
    found = plan("ppo", Launch(1, "none"), layout, "tiny")
    assert {*found.trained, *found.frozen} == models


@pytest.mark.parametrize(
    ("launch", "text", "elements"),
    [
        (Launch(1, "none"), "use_peft: true", 4),
        (Launch(1, "none"), "use_peft: true\nmerge_lora_for_generation: false", None),
        (Launch(1, "none"), "", None),
        (Launch(8, "zero3", bf16=True), "use_peft: true", 2),
        (Launch(8, "zero3", bf16=True), "use_peft: true\nds3_gather_for_generation: false", None),
        (Launch(8, "zero3", bf16=True), "use_peft: true\nrollout_engine: vllm", None),
    ],
)
def test_merging_lora_for_generation_keeps_the_weights_that_it_changes(plan, launch, text, elements):
    text += "\nlora_target_modules: [q_proj, k_proj]"
    copies = [item for item in plan("ppo", launch, text).items if "without LoRA" in item.name]
    assert [item.num_bytes for item in copies] == ([] if elements is None else [BLOCKS * 2 * H * H * elements])
    assert all(item.phase == GENERATION for item in copies)


@pytest.mark.parametrize(
    ("stage", "text", "element"),
    [
        # TRL's GRPO samples in the autocast of a full model. An adapter's generate, and PPO's, go past it.
        ("grpo", "", 2),
        ("grpo", "use_peft: true", 4),
        ("ppo", "", 4),
    ],
)
def test_the_cache_has_the_precision_that_sampling_computes_in(plan, stage, text, element):
    text += "\nper_device_train_batch_size: 8\nmax_completion_length: 512"
    sizes = {item.name: item.num_bytes for item in plan(stage, Launch(1, "none", bf16=True), text).items}
    # Prompts of 512 tokens, and answers of as many.
    assert sizes["key-value cache"] == 2 * BLOCKS * H * 8 * 1024 * element


def test_the_judge_of_grpo_is_whole_on_every_device_as_it_was_loaded(plan):
    for text, element in (("dtype: bfloat16", 2), ("", 4)):
        sizes = {item.name: item.num_bytes for item in plan("grpo", Launch(8, "zero3", bf16=True), text).items}
        assert sizes["reward model: weights"] == (PARAMETERS + H) * element


def test_trl_counts_the_answers_of_all_devices(plan):
    text = "per_device_train_batch_size: 2\ngradient_accumulation_steps: 4"
    assert plan("grpo", Launch(8, "ddp"), text).answers_at_once == 2 * 4
    assert plan("grpo", Launch(8, "ddp"), text + "\nsteps_per_generation: 2").answers_at_once == 2 * 2
    assert plan("grpo", Launch(8, "ddp"), text + "\ngeneration_batch_size: 96").answers_at_once == 12
    text = "per_device_train_batch_size: 2\nnum_rollout_batches: 4\ngeneration_batch_size: "
    assert plan("ppo", Launch(8, "ddp"), text + "6").answers_at_once == 6
    assert plan("ppo", Launch(8, "ddp"), text + "96").answers_at_once == 2 * 4


def test_options_of_ppo_that_need_memory_have_it(plan):
    def sizes(text: str) -> dict[str, int]:
        return {item.name: item.num_bytes for item in plan("ppo", Launch(8, "zero3", bf16=True), text).items}

    plain = sizes("")
    averaging, learning_texts, asking = (
        sizes("ema_decay: 0.99"),
        sizes("ptx_data: texts.jsonl"),
        sizes("rollout_engine: vllm"),
    )
    assert averaging == plain | {"policy: moving average": 4 * PARAMETERS // 8}
    assert learning_texts["texts: activations"] == plain["policy: activations"]
    # A prediction for every token of a text, not for the answer alone.
    share = (512 + 256) / (256 + 1)
    assert learning_texts["texts: whole logits and loss"] == pytest.approx(plain["whole logits and loss"] * share)
    assert plain.keys() - asking.keys() == {
        "key-value cache",
        "logits of a token",
        "policy gathered for generation",
    }


@pytest.mark.parametrize(("length", "expected"), [("512", 512), ("4096", 1024), ("null", 1024)])
def test_no_sequence_is_longer_than_the_model_has_positions(plan, length, expected):
    found = plan("sft", Launch(1, "none"), f"max_length: {length}\nper_device_train_batch_size: 3")
    assert found.tokens_per_batch == 3 * expected


def test_the_newer_name_of_gradient_checkpointing_wins(recipe):
    assert recipe("sft").checkpoints_activations
    assert not recipe("sft", "gradient_checkpointing: false").checkpoints_activations
    assert not recipe("sft", "activation_checkpointing: false").checkpoints_activations
    assert recipe("sft", "activation_checkpointing: true\ngradient_checkpointing: false").checkpoints_activations


def test_buckets_and_fetched_weights_are_as_large_as_deepspeed_has_them_by_default(plan):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    defaults = DeepSpeedZeroConfig()
    sizes = {item.name: item.num_bytes for item in plan("sft", Launch(8, "zero3", bf16=True)).items}
    # Elements, in bfloat16; the model has 2.6 billion weights.
    assert sizes["model: bucket of DeepSpeed"] == 2 * defaults.reduce_bucket_size
    assert sizes["weights fetched by ZeRO-3"] == 2 * defaults.max_live_parameters


def test_every_process_and_device_pays_for_its_libraries_before_any_weight(plan):
    """As read off machines: a GiB for CUDA and its libraries, three quarters for Python's."""
    found = plan("sft", Launch(1, "none", bf16=True))
    phases = {item.phase for item in found.items}
    worst = max(sum(i.num_bytes for i in found.items if i.phase in (ALWAYS, phase)) for phase in phases)
    assert found.peak() - worst == 2**30
    # Nothing of this run is on the host.
    assert found.peak(on_host=True) == 0.75 * 2**30
    on_cpu = plan("sft", Launch(1, "none", on_cpu=True))
    worst = max(sum(i.num_bytes for i in on_cpu.items if i.phase in (ALWAYS, phase)) for phase in phases)
    assert on_cpu.peak() - worst == 0.75 * 2**30


def test_logits_have_the_copies_that_each_loss_makes(plan):
    # PPO: the logits of one answer token more than it has, three times in float32, and once in bfloat16.
    text = "per_device_train_batch_size: 2\nmax_completion_length: 99"
    sizes = {item.name: item.num_bytes for item in plan("ppo", Launch(1, "none", bf16=True), text).items}
    assert sizes["whole logits and loss"] == 2 * 100 * V * (3 * 4 + 2)
    # TRL's: tiles of 4096 tokens and 32768 columns, and the gradient of the head; on CPU seven copies in float32.
    text = "per_device_train_batch_size: 16"
    sizes = {item.name: item.num_bytes for item in plan("sft", Launch(1, "none", bf16=True), text).items}
    assert sizes["tile of logits"] == 4096 * 32768 * 2 + 4 * V * H
    sizes = {item.name: item.num_bytes for item in plan("sft", Launch(1, "none", on_cpu=True), text).items}
    assert sizes["tile of logits"] == 4096 * (32768 * 4 + 7 * 32768 * 4) + 4 * V * H


def test_label_smoothing_reads_all_logits_at_once(plan):
    def sizes(text):
        return {item.name: item.num_bytes for item in plan("sft", Launch(1, "none", bf16=True), text).items}

    smoothed = sizes("per_device_train_batch_size: 2\nlabel_smoothing_factor: 0.1")
    assert smoothed["whole logits and loss"] == 2 * 512 * V * (3 * 4 + 2)
    assert "tile of logits" not in smoothed
    # TRL leaves the smoothing out with its other loss.
    assert "tile of logits" in sizes("label_smoothing_factor: 0.1\nloss_type: dft")


def test_the_language_model_loss_of_a_reward_model_has_the_logits_of_its_best_answers(plan):
    def sizes(text):
        return {item.name: item.num_bytes for item in plan("reward", Launch(1, "none", bf16=True), text).items}

    text = "per_device_train_batch_size: 8"
    assert "logits of the best answers" not in sizes(text)
    # Likelihoods of eight answers in float32; of one their gradients, and those of its logits in both precisions.
    expected = 512 * V * (8 * 4 + 4 + 4 + 2)
    whole = sizes(f"{text}\nlm_coefficient: 0.1")
    assert whole["logits of the best answers"] == expected + 4 * V * H
    # Of a head that does not learn there is no gradient.
    assert sizes(f"{text}\nlm_coefficient: 0.1\nuse_peft: true")["logits of the best answers"] == expected


def test_offloaded_states_are_in_the_memory_of_the_host(plan):
    on_device, offloaded = (
        plan("sft", Launch(8, "zero3", True, offload_optimizer=off, offload_weights=off)) for off in (False, True)
    )
    assert offloaded.peak() < on_device.peak()
    # Masters, moments, float32 gradients and 16-bit weights, a part each.
    assert offloaded.peak(on_host=True) - on_device.peak(on_host=True) >= 18 * PARAMETERS // 8 - 2 * PARAMETERS


def test_traffic_follows_the_ring(plan):
    ddp = step_transfers(plan("sft", Launch(8, "ddp", bf16=True)))
    assert [transfer.sent_by_each(8) for transfer in ddp] == [2 * 4 * PARAMETERS * 7 // 8]
    accumulating = step_transfers(plan("sft", Launch(8, "zero2", bf16=True), "gradient_accumulation_steps: 4"))
    assert [transfer.num_bytes for transfer in accumulating] == [4 * 2 * PARAMETERS, 2 * PARAMETERS]
    assert step_transfers(plan("sft", Launch(1, "none"))) == []


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_can_be_planned(path):
    launch = read_launch(path)
    assert launch.num_devices >= 1
    assert launch.offload_weights is (path.stem == "zero3_offload")
    assert read_launch(path, 64 if launch.sharding != "none" else 1).num_devices in (1, 64)


def test_the_command_prints_a_plan(capsys):
    options = ["--accelerate", str(ROOT / "accelerate_configs" / "zero3.yaml"), "--gpus", "8", "--gpu-memory", "80"]
    recipe = ROOT / "recipes" / "pangu-2.6b" / "reward" / "full.yaml"
    assert main(["plan", "--config", str(recipe), *options]) == 0
    text = capsys.readouterr().out
    assert text.startswith("reward of pangu-2.6b, 8 GPUs, zero3, all weights; computed, not measured")
    assert "\nfits: " in text and "(reduce-scatter)" in text


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo", "grpo"])
def test_every_option_of_a_script_may_stand_in_its_recipe(stage, tmp_path, monkeypatch):
    (tmp_path / f"{stage}.yaml").write_text("")
    known = read_settings(tmp_path / f"{stage}.yaml", "tiny").options
    script = runpy.run_path(str(ROOT / "recipes" / f"{stage}.py"), run_name="not main")
    taken: list[type] = []

    def stop(*dataclass_types: type) -> None:
        taken.extend(dataclass_types)
        raise InterruptedError

    monkeypatch.setitem(script["main"].__globals__, "parse_options", stop)
    with pytest.raises(InterruptedError):
        script["main"]()
    options = [option for dataclass_type in taken for option in fields(dataclass_type) if option.init]
    assert known.keys() == {option.name for option in options}
    for option in options:
        if option.default is not MISSING:
            assert known[option.name] == option.default, option.name


@pytest.mark.parametrize(
    ("recipe_text", "config_text", "message"),
    [
        ("no_such_option: 1", "distributed_type: 'NO'", "sft.yaml: no_such_option: no options of the stage sft"),
        ("", "distributed_type: 'NO'", "names no model; pass --model"),
        ("model_name_or_path: tiny", "zero_stage: 3", "must be an accelerate configuration"),
        ("model_name_or_path: tiny", "distributed_type: 'NO'\nnum_processes: 4", "starts one process, and 4 devices"),
        ("model_name_or_path: tiny", "distributed_type: MEGATRON_LM", "the plan knows none, ddp, zero1"),
        (
            "model_name_or_path: tiny",
            "distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 3",
            "2 machines start equally many processes, and 3 devices were asked for",
        ),
        (
            "model_name_or_path: no/model",
            "distributed_type: 'NO'",
            "no/model: no model whose config.json can be loaded",
        ),
        ("- tiny", "distributed_type: 'NO'", "must hold options, one `name: value` a line; got a list"),
        ("reward_model: judge", "distributed_type: 'NO'", "reward_model: no options of the stage sft"),
        (
            "model_name_or_path: tiny\nload_in_4bit: true",
            "distributed_type: 'NO'",
            "load_in_4bit and load_in_8bit need use_peft",
        ),
        (
            "model_name_or_path: tiny\nuse_peft: true\nload_in_8bit: true",
            "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\nnum_processes: 2",
            "cannot be sharded by ZeRO-3 and FSDP2",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(tmp_path, capsys, recipe_text, config_text, message):
    (tmp_path / "sft.yaml").write_text(recipe_text)
    (tmp_path / "accelerate.yaml").write_text(config_text)
    paths = ["--config", str(tmp_path / "sft.yaml"), "--accelerate", str(tmp_path / "accelerate.yaml")]
    assert main(["plan", *paths]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("stage", "text"), [("ppo", "rollout_engine: vllm"), ("grpo", "use_vllm: true")])
def test_the_memory_of_a_colocated_vllm_is_not_planned(tmp_path, capsys, stage, text):
    config = str(ROOT / "accelerate_configs" / "cpu.yaml")
    (tmp_path / f"{stage}.yaml").write_text(f"model_name_or_path: tiny\n{text}\nvllm_mode: colocate")
    assert main(["plan", "--config", f"{tmp_path}/{stage}.yaml", "--accelerate", config]) == 2
    assert "vllm_gpu_memory_utilization of each GPU, which the plan does not count" in capsys.readouterr().err


def test_precisions_with_which_deepspeed_does_not_start_are_refused(tmp_path, capsys):
    (tmp_path / "ppo.yaml").write_text("model_name_or_path: tiny")
    paths = ["--config", str(tmp_path / "ppo.yaml"), "--accelerate"]
    assert main(["plan", *paths, str(ROOT / "accelerate_configs" / "zero3.yaml")]) == 2
    assert "set bf16: true in the recipe" in capsys.readouterr().err
    assert main(["plan", *paths, str(ROOT / "accelerate_configs" / "ddp.yaml")]) == 0


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    recipe, config = str(ROOT / "recipes/tiny/sft/full.yaml"), str(ROOT / "accelerate_configs/cpu.yaml")
    assert main(["plan", "--config", f"{tmp_path}/sft.yaml", "--accelerate", config]) == 2
    assert f"{tmp_path}/sft.yaml: no such recipe" in capsys.readouterr().err
    assert main(["plan", "--config", recipe, "--accelerate", f"{tmp_path}/ddp.yaml"]) == 2
    assert f"{tmp_path}/ddp.yaml: no accelerate configuration" in capsys.readouterr().err
