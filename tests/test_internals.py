"""Every private or undocumented name of other libraries that pangu_trl and the recipes use, in one table.

An upgrade that moves or changes one fails here by its name, not in the middle of a run. The guards at the end find the
uses in the sources, so that a new one needs a row.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import pangu_trl

ROOT = Path(__file__).parent.parent
LIBRARIES = {"accelerate", "datasets", "deepspeed", "peft", "torch", "transformers", "trl"}
# Modules of the libraries' documentation; torch documents all that it names without an underscore.
DOCUMENTED = {"accelerate.utils", "peft.utils", "transformers.integrations", "transformers.trainer_utils"}

ANY = None  # a class or constant: that it exists

# Where it is, its parameters (a leading part of them where the list ends in ...), and why we need it.
IMPORTED: list[tuple[str, Any, str]] = [
    ("accelerate.commands.config.config_args.default_config_file", ANY, "what `accelerate config` wrote"),
    ("accelerate.commands.launch.launch_command", ["args"], "the command line starts a recipe as accelerate does"),
    ("accelerate.commands.launch.launch_command_parser", ["subparsers"], "and reads the same options"),
    ("accelerate.state.AcceleratorState", ANY, "the type of `accelerator.state`, for annotations"),
    (
        "datasets.features.features.register_feature",
        ["feature_cls", "feature_type"],
        "a feature of our own that holds nested values exactly",
    ),
    (
        "datasets.iterable_dataset.ExamplesIterable",
        ["generate_examples_fn", "kwargs", ...],
        "a stream of a function without hashing what it closes over, and without a cache",
    ),
    ("datasets.table.MemoryMappedTable", ANY, "the records in the cache, as a dataset"),
    ("deepspeed.utils.safe_get_full_fp32_param", ["param"], "the average is one of the float32 copies"),
    ("deepspeed.utils.safe_get_local_fp32_param", ["param"], "the same, of a shard under ZeRO-3"),
    ("datasets.exceptions.DatasetsError", ANY, "an error of the data is one line"),
    ("datasets.fingerprint.Hasher", ANY, "fingerprints of loaded data that do not change between runs"),
    ("peft.tuners.lora.LoraLayer", ANY, "finds the layers whose LoRA can be merged for sampling"),
    ("peft.tuners.tuners_utils.BaseTunerLayer", ANY, "finds the layers whose adapter is selected"),
    ("peft.utils.AuxiliaryTrainingWrapper", ANY, "finds heads and embeddings that PEFT trains whole"),
    ("peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", ANY, "LoRA's default targets"),
    ("peft.utils.constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING", ANY, "so are other methods' called"),
    ("peft.utils.constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING", ANY, "what IA3 scales inside"),
    (
        "torch.distributed.distributed_c10d._set_pg_timeout",
        ["timeout", "group"],
        "ddp_timeout holds on CPU, where transformers does not pass it on",
    ),
    ("torch.distributed.distributed_c10d._world", ANY, "every group of the process, those of DeepSpeed too"),
    ("torch.nn.modules.dropout._DropoutNd", ANY, "every kind of dropout is switched off, not nn.Dropout alone"),
    ("transformers.activations.ACT2FN", ANY, "the activation by its name in config.json"),
    ("transformers.cache_utils.Cache", ANY, "what a cache must be"),
    ("trl.kernels.ChunkedLogProbFunction", ANY, "log-probabilities and entropy from hidden states, tile by tile"),
    ("transformers.cache_utils.DynamicLayer", ANY, "a layer of the running cache keeps its other methods"),
    ("transformers.cache_utils.DynamicSlidingWindowLayer", ANY, "a layer that a running cache may keep whole"),
    ("transformers.dynamic_module_utils.get_relative_import_files", ["module_file"], "files of custom code"),
    ("transformers.generation.streamers.BaseStreamer", ANY, "gets the tokens of an answer as they come"),
    ("transformers.generation.continuous_batching.PagedAttentionCache", ANY, "is no Cache, but comes as `cache`"),
    ("transformers.integrations.deepspeed.HfDeepSpeedConfig", ANY, "GRPO loads its reward model unsharded"),
    ("transformers.integrations.deepspeed.deepspeed_config", [], "GRPO restores it after that"),
    ("transformers.integrations.deepspeed.is_deepspeed_zero3_enabled", [], "asks what loading would do"),
    ("transformers.integrations.deepspeed.unset_hf_deepspeed_config", [], "GRPO loads its reward model unsharded"),
    (
        "transformers.integrations.sdpa_attention.sdpa_attention_forward",
        ["module", "query", "key", "value", "attention_mask", "dropout", "scaling", ...],
        "prefix sharing falls back on it without a layout",
    ),
    (
        "transformers.masking_utils.create_causal_mask",
        ["config", "inputs_embeds", "attention_mask", {"cache", "past_key_values"}, "position_ids", ...],
        "the mask in the form of the attention implementation; its signature tells the name of the cache",
    ),
    ("transformers.masking_utils.packed_sequence_mask_function", ["packed_sequence_mask"], "keeps sequences apart"),
    ("transformers.masking_utils.sdpa_mask", ["batch_size", "q_length", "kv_length", ...], "prefix sharing's mask"),
    ("transformers.modeling_layers.GenericForSequenceClassification", ANY, "forward of the score head"),
    ("transformers.modeling_layers.GenericForTokenClassification", ANY, "forward of the token head"),
    ("transformers.modeling_layers.GradientCheckpointingLayer", ANY, "blocks that checkpointing knows"),
    ("transformers.modeling_outputs.BaseModelOutputWithPast", ANY, "what the model returns"),
    ("transformers.modeling_outputs.CausalLMOutputWithPast", ANY, "what the model returns"),
    ("transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS", ANY, "the attention interface"),
    ("transformers.modeling_utils.slice_logits_to_keep", ["hidden_states", "logits_to_keep"], "logits_to_keep"),
    *(
        (f"transformers.models.auto.modeling_auto.{name}", ANY, "Trainer asks for the class by name")
        for name in (
            "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
            "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
            "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
            "MODEL_MAPPING_NAMES",
        )
    ),
    ("transformers.modeling_outputs.MoeModelOutputWithPast", ANY, "what any backbone may answer, in the plan's trial"),
    ("transformers.processing_utils.Unpack", ANY, "annotations of native models"),
    ("transformers.tokenization_utils_base.TruncationStrategy", ANY, "the tokenizer truncates by itself"),
    ("transformers.trainer.TRAINING_ARGS_NAME", ANY, "the pickled options, which are not pushed"),
    ("transformers.utils.PaddingStrategy", ANY, "the tokenizer pads by itself"),
    ("transformers.utils.TransformersKwargs", ANY, "which keywords forward lets pass"),
    ("transformers.utils.cached_file", ["path_or_repo_id", "filename", "kwargs"], "a file of a folder or the Hub"),
    ("transformers.utils.can_return_tuple", ["func"], "return_dict=False"),
    ("transformers.utils.find_adapter_config_file", ["model_id", ...], "is it an adapter?"),
    ("transformers.utils.is_bitsandbytes_available", ["min_version"], "refuses quantisation before the work"),
    ("transformers.utils.is_tracing", ["tensor"], "no look at values in a traced graph"),
    ("transformers.utils.hub.hf_api", [], "the client that the Trainer uploads by"),
    ("transformers.utils.generic.is_flash_attention_requested", ["config", ...], "packing under flash attention"),
    ("transformers.utils.generic.merge_with_config_defaults", ["func"], "use_cache of the configuration"),
    ("transformers.utils.output_capturing.OutputRecorder", ANY, "hidden states and attentions on request"),
    ("transformers.utils.output_capturing.capture_outputs", ["func", ...], "hidden states and attentions on request"),
    ("transformers.initialization.normal_", ["tensor", "mean", "std", "generator"], "init that loading may skip"),
    ("transformers.pytorch_utils.Conv1D", ANY, "GPT-2's linear layer, whose weight lies the other way round"),
    (
        "transformers.utils.chat_template_utils.render_jinja_template",
        ["conversations", "tools", "documents", "chat_template", "return_assistant_tokens_mask", ...],
        "the text of a conversation with the places that its template marks as the assistant's",
    ),
    ("trl.trainer.dpo_trainer.DataCollatorForPreference", ANY, "batches of pairs, for recipes/dpo.py"),
    ("trl.generation.vllm_client.VLLMClient", ANY, "TRL's client of a vLLM server"),
    ("trl.generation.vllm_generation.VLLMGeneration", ANY, "TRL's vLLM in the training's processes"),
    ("trl.import_utils.is_requests_available", [], "the client needs requests"),
    ("trl.import_utils.is_vllm_available", ["min_version"], "names the vLLM that is missing"),
]

_TRAINER = "transformers.trainer.Trainer"
_MODEL = "transformers.modeling_utils.PreTrainedModel"
_TOKENIZER = "transformers.tokenization_python.PythonBackend"
_VLLM = "trl.generation.vllm_generation.VLLMGeneration"
_REWARD = "trl.trainer.reward_trainer.RewardTrainer"

# Methods and attributes of classes that we override or call.
MEMBERS: list[tuple[str, Any, str]] = [
    (f"{_TRAINER}._get_eval_sampler", ["self", "eval_dataset"], "unequal shares of the ranks"),
    (f"{_TRAINER}._get_output_dir", ["self", "trial"], "where a checkpoint goes"),
    (f"{_TRAINER}._get_train_sampler", ["self", "train_dataset"], "answers of a prompt stay together"),
    (f"{_TRAINER}._load_best_model", ["self"], "the parts of PPO's model; the score statistics of a reward model"),
    (f"{_TRAINER}._load_from_checkpoint", ["self", "resume_from_checkpoint", "model"], "the parts of PPO's model"),
    (f"{_TRAINER}._load_optimizer_and_scheduler", ["self", "checkpoint"], "PPO's own state is loaded after it"),
    (f"{_TRAINER}._prepare_inputs", ["self", "inputs"], "PPO's rollout; the layout of a shared prefix"),
    (f"{_TRAINER}._push_from_checkpoint", ["self", "checkpoint_folder"], "pushes a checkpoint when it is whole"),
    (f"{_TRAINER}._save", ["self", "output_dir", "state_dict"], "what a saved model consists of"),
    (f"{_TRAINER}._save_checkpoint", ["self", "model", "trial"], "PPO's own state; the mark of a whole checkpoint"),
    (f"{_REWARD}._name", "Reward", "its name on model cards"),
    (f"{_REWARD}._prepare_dataset", ["self", "dataset", "processing_class", "args", "dataset_name"], "our tokenising"),
    (f"{_REWARD}._set_signature_columns_if_needed", ["self"], "our columns"),
    (f"{_REWARD}._tag_names", ["trl", "reward-trainer"], "tags on model cards"),
    (
        "trl.trainer.dpo_trainer.DPOTrainer._set_signature_columns_if_needed",
        ["self"],
        "the columns of recipes/dpo.py that tell turns apart",
    ),
    (
        "trl.trainer.grpo_trainer.GRPOTrainer._generate_and_score_completions",
        ["self", "inputs"],
        "recipes/grpo.py takes the token ids of the records that are answered",
    ),
    (
        "trl.trainer.grpo_trainer.GRPOTrainer._tokenize_prompts",
        ["self", "prompts"],
        "recipes/grpo.py has encoded the prompts",
    ),
    (
        "trl.trainer.dpo_trainer.DPOTrainer._prepare_dataset",
        ["self", "dataset", "processing_class", "args", "dataset_name"],
        "recipes/dpo.py tokenises by itself",
    ),
    (f"{_VLLM}._iter_named_params", ["self"], "the policy's plain weights go to a colocated vLLM"),
    (f"{_VLLM}.sync_weights", ["self"], "walks them, into a vLLM that does not sleep"),
    (
        f"{_VLLM}.generate",
        ["self", "prompts", "images", "num_generations", "profiler"],
        "samples; hands all prompts to `llm` with one set of options",
    ),
    ("datasets.features.features.Json._type", "Json", "the name of our own feature in what is stored"),
    (f"{_MODEL}._can_compile_fullgraph", ANY, "static caches compile"),
    (f"{_MODEL}._can_record_outputs", ANY, "hidden states and attentions on request"),
    (f"{_MODEL}._init_weights", ["self", "module"], "scaled residual projections"),
    (f"{_MODEL}._keys_to_ignore_on_load_unexpected", ANY, "mask buffers of published files"),
    (f"{_MODEL}._no_split_modules", ANY, "blocks stay whole under device maps and FSDP"),
    (f"{_MODEL}._skip_keys_device_placement", ANY, "caches stay on their devices"),
    (f"{_MODEL}._supports_attention_backend", ANY, "the attention interface; prefix sharing asks for it"),
    (f"{_MODEL}._supports_flash_attn", ANY, "flash attention"),
    (f"{_MODEL}._supports_flex_attn", ANY, "flex attention"),
    (f"{_MODEL}._supports_sdpa", ANY, "SDPA"),
    (f"{_MODEL}._tied_weights_keys", ANY, "the tied head"),
    (f"{_MODEL}._tp_plan", ANY, "tensor parallelism of the head"),
    (f"{_TOKENIZER}._convert_id_to_token", ["self", "index"], "ids to pieces"),
    (f"{_TOKENIZER}._convert_token_to_id", ["self", "token"], "pieces to ids"),
    (
        f"{_TOKENIZER}._decode",
        ["self", "token_ids", "skip_special_tokens", "clean_up_tokenization_spaces", "kwargs"],
        "ids to text",
    ),
    (f"{_TOKENIZER}._encode_plus", ["self", "text", "text_pair", "add_special_tokens", ...], "text to ids"),
    (
        f"{_TOKENIZER}._eventual_warn_about_too_long_sequence",
        ["self", "ids", "max_length", "verbose"],
        "as others warn",
    ),
    (f"{_TOKENIZER}._tokenize", ["self", "text", "kwargs"], "text to pieces"),
    (f"{_TOKENIZER}._update_trie", ["self", "unique_no_split_tokens"], "special tokens in a text"),
    ("atexit._run_exitfuncs", ANY, "a rank ends without the interpreter's teardown"),
    (
        "deepspeed.runtime.zero.parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module",
        ["self", "module", "count"],
        "the hooks that gather and release come back after sampling",
    ),
    (
        "deepspeed.runtime.zero.partitioned_param_coordinator.PartitionedParameterCoordinator._invalidate_trace",
        ["self"],
        "the recorded order of modules does not hold after sampling",
    ),
    (
        "deepspeed.runtime.zero.partitioned_param_coordinator.PartitionedParameterCoordinator.is_invalid_trace",
        ["self"],
        "it may be forgotten once only",
    ),
]

# Attributes of instances: the module whose source must mention the name.
ATTRIBUTES: list[tuple[str, str, str]] = [
    ("datasets.arrow_dataset", "_fingerprint", "tells evaluation sets apart"),
    ("deepspeed.runtime.zero.parameter_offload", "backward_hooks", "taken off while sampling"),
    ("deepspeed.runtime.zero.parameter_offload", "forward_hooks", "taken off while sampling"),
    ("deepspeed.runtime.zero.parameter_offload", "param_coordinator", "forgets the order of modules"),
    ("deepspeed.runtime.zero.partition_parameters", "ds_active_sub_modules", "no module holds a weight while sampling"),
    ("deepspeed.runtime.zero.partition_parameters", "ds_numel", "size of a sharded weight"),
    ("deepspeed.runtime.zero.partition_parameters", "ds_shape", "shape of a sharded weight"),
    ("deepspeed.runtime.zero.partition_parameters", "ds_tensor", "the shard, and that there is one"),
    ("deepspeed.runtime.zero.stage3", "parameter_offload", "what hooks ZeRO-3 into a module"),
    ("peft.tuners.tuners_utils", "_active_adapter", "selects an adapter; set_adapter would freeze the others"),
    ("peft.tuners.tuners_utils", "_disable_adapters", "selects no adapter"),
    ("torch.optim.lr_scheduler", "_last_lr", "the rate that is logged after the policy's was held at 0"),
    ("transformers.configuration_utils", "_attn_implementation", "which attention runs"),
    ("transformers.configuration_utils", "_name_or_path", "what a saved adapter calls its base"),
    ("transformers.integrations.peft", "_hf_peft_config_loaded", "an adapter that transformers loaded is refused"),
    ("transformers.modeling_utils", "_gradient_checkpointing_func", "recomputes under the adapter of the forward pass"),
    ("transformers.modeling_utils", "_is_stateful", "prefix sharing refuses models with a recurrent state"),
    ("transformers.tokenization_python", "_added_tokens_decoder", "ids of added tokens"),
    ("transformers.tokenization_python", "_added_tokens_encoder", "ids of added tokens"),
    ("transformers.tokenization_utils_base", "_extra_special_tokens", "special tokens without a role"),
    ("transformers.trainer", "_signature_columns", "our columns"),
    ("transformers.trainer", "_total_loss_scalar", "the mean loss of a whole run, over its resumes"),
    ("transformers.trainer", "_tr_loss", "the mean loss of a whole run, over its resumes"),
    ("trl.generation.vllm_generation", "_llm_weights_sleeping", "a vLLM that slept gets its weights from `generate`"),
    ("trl.trainer.dpo_trainer", "_total_train_tokens", "tokens of a whole run, over its resumes"),
    ("trl.trainer.sft_trainer", "_total_train_tokens", "tokens of a whole run, over its resumes"),
    ("trl.trainer.reward_trainer", "_metrics", "figures of a batch are logged with TRL's"),
    ("trl.trainer.reward_trainer", "_total_train_tokens", "tokens seen, as TRL counts them"),
    ("accelerate.accelerator", "_is_accelerate_prepared", "a model that was evaluated first is wrapped again"),
]


def named(path: str) -> Any:
    """The object of a dotted path through modules and classes."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(path)


@pytest.mark.parametrize(("path", "expected", "why"), IMPORTED + MEMBERS, ids=[row[0] for row in IMPORTED + MEMBERS])
def test_an_internal_name_is_where_we_look_for_it(path, expected, why):
    try:
        found = named(path)
    except (AttributeError, ModuleNotFoundError) as error:
        pytest.fail(f"{path} is gone ({error}). We need it: {why}.")
    if expected is ANY:
        return
    if not callable(found):
        assert found == expected, f"{path} is {found!r}. We need it: {why}."
        return
    parameters = list(inspect.signature(found).parameters)
    fixed = expected[: expected.index(...)] if ... in expected else expected
    assert len(parameters) == len(fixed) or ... in expected, f"{path} takes {parameters}. We need it: {why}."
    for name, choices in zip(parameters, fixed, strict=False):
        assert name in choices if isinstance(choices, set) else name == choices, f"{path} takes {parameters}: {why}."


@pytest.mark.parametrize(("module", "name", "why"), ATTRIBUTES, ids=[f"{row[0]}.{row[1]}" for row in ATTRIBUTES])
def test_an_internal_attribute_is_still_used_where_we_reach_for_it(module, name, why):
    source = inspect.getsource(importlib.import_module(module))
    assert re.search(rf"\b{name}\b", source), f"{module} knows no {name}. We need it: {why}."


SOURCES = [*sorted((ROOT / "pangu_trl").rglob("*.py")), *sorted((ROOT / "recipes").rglob("*.py"))]
TREES = {path: ast.parse(path.read_text("utf-8")) for path in SOURCES}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_every_import_from_inside_a_library_has_a_row():
    known = {path for path, *_ in IMPORTED}
    missing = set()
    for source, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.level or node.module.split(".")[0] not in LIBRARIES:
                continue
            library = importlib.import_module(node.module.split(".")[0])
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                private = any(map(is_private, path.split(".")))
                public = node.module in DOCUMENTED | {library.__name__} or library.__name__ == "torch"
                # The same object at the top is documented there.
                public = public or getattr(library, alias.name, None) is named(path)
                if path not in known and (private or not public):
                    missing.add(f"{source.relative_to(ROOT)}: {path}")
    assert not missing, "add a row to IMPORTED, or import it from where it is documented"


def test_every_private_attribute_that_is_not_ours_has_a_row():
    rows = {row[1] for row in ATTRIBUTES} | {row[0].rpartition(".")[2] for row in MEMBERS}
    ours = {node.name for tree in TREES.values() for node in ast.walk(tree) if hasattr(node, "name")}
    ours |= {
        node.attr
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    missing = set()
    for source, tree in TREES.items():
        for node in ast.walk(tree):
            name = ""
            if isinstance(node, ast.Attribute):
                name = node.attr
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
                name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            # sys._current_frames and os._exit are documented, their underscores notwithstanding.
            if is_private(name) and name not in ours | rows | {"_current_frames", "_exit"}:
                missing.add(f"{source.relative_to(ROOT)}:{node.lineno}: {name}")
    assert not missing, "add a row to ATTRIBUTES or MEMBERS"


def test_every_private_member_of_a_library_class_that_we_override_has_a_row():
    rows = {row[0].rpartition(".")[2] for row in MEMBERS} | {row[1] for row in ATTRIBUTES}
    modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(pangu_trl.__path__, "pangu_trl.")]
    spaces = [vars(module) for module in modules]
    spaces += [runpy.run_path(str(path)) for path in sorted((ROOT / "recipes").glob("*.py"))]
    missing = set()
    for cls in {value for space in spaces for value in space.values() if inspect.isclass(value)}:
        if cls.__module__.split(".")[0] in LIBRARIES:
            continue
        inherited = {
            name for base in cls.__mro__[1:] if base.__module__.split(".")[0] in LIBRARIES for name in vars(base)
        }
        # What a class machinery writes by itself is not ours.
        overridden = {name for name in vars(cls) if is_private(name)} & inherited - {"_abc_impl"}
        missing |= {f"{cls.__name__}.{name}" for name in overridden - rows}
    assert not missing, "add a row to MEMBERS"
