"""Loading a folder or Hub id that holds a whole model, or a PEFT adapter and the name of its base model.

`AutoModel*.from_pretrained` of an adapter's folder gives the base model with the adapter injected and everything
frozen, which looks like a model to train and learns nothing; everything here goes through PEFT instead.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import cached_file, find_adapter_config_file

from pangu_trl.data.near_names import is_path, nearest_path

from .adapter_kinds import check_padding_is_unseen
from .load_reports import reports_of_files
from .model_kinds import modules_saved_whole, refuse_scoring_adapter, refuse_scoring_model
from .vocabulary import check_vocabulary
from .weight_files import refuse_broken_weights, refuse_pointers

# PEFT asks transformers for it at every adapter, and nobody who loads one can mend that.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def load_with_adapter(
    auto_class: Any, model_id: str, adapter: str | None = None, **model_kwargs: Any
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, list[str]]:
    """Loads a model with its tokenizer onto this process's device, and a PEFT adapter over it.

    Args:
        auto_class: Auto class of the model, e.g. `AutoModelForCausalLM`.
        model_id: Folder or hub id of a model, or of an adapter, which then names its base model.
        adapter: Folder or hub id of an adapter for a `model_id` that is none itself.
        **model_kwargs: Passed on to `from_pretrained` of the model.

    Returns:
        Model, tokenizer (the adapter's if it brings one), and names of the parameters that no file held, which
        are random.

    Raises:
        ValueError: If one of them cannot be loaded, or has weights that are no numbers, or both are adapters.
    """
    refuse_pointers(model_id)
    model, tokenizer, missing = _load(auto_class, model_id, adapter, "main", **model_kwargs)
    refuse_broken_weights(model, model_id)
    return model.to(PartialState().device), tokenizer, missing


def load_merged(
    auto_class: Any, model_id: str, revision: str = "main", **model_kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Loads a whole model to start a training from; an adapter is merged into its base model.

    Every parameter asks for gradients, and the model stays where `from_pretrained` put it.

    Args:
        auto_class: Auto class of the model, e.g. `AutoModelForCausalLM`.
        model_id: Folder or hub id of a model, or of an adapter, which then names its base model.
        revision: Branch, tag or commit of `model_id` on the hub.
        **model_kwargs: Passed on to `from_pretrained` of the model.

    Returns:
        As `load_with_adapter`.

    Raises:
        ValueError: If it cannot be loaded, or is an adapter that cannot be merged here.
    """
    base_id = find_base_model(model_id, revision)
    if base_id is not None and is_deepspeed_zero3_enabled():
        raise ValueError(_merge_first(model_id, base_id, "ZeRO-3 shards the base model while it loads"))
    if base_id is not None and model_kwargs.get("quantization_config") is not None:
        raise ValueError(_merge_first(model_id, base_id, "merging into a quantised base model loses precision"))
    model, tokenizer, missing = _load(auto_class, model_id, None, revision, **model_kwargs)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
        # PEFT froze the base model and does not undo it.
        model.requires_grad_(True)
    return model, tokenizer, missing


def find_base_model(model_id: str, revision: str = "main") -> str | None:
    """Finds the base model that an adapter (folder or hub id) was trained on; None if `model_id` is no adapter."""
    config = read_adapter_config(model_id, revision)
    return None if config is None else config.base_model_name_or_path


def adapter_folder(model_id: str) -> str:
    """Where an adapter's files are: PEFT saves one that is not called `default` one folder deeper, under its name.

    Args:
        model_id: Folder or hub id; what is no folder, or holds a model or an adapter itself, comes back as it is.

    Raises:
        ValueError: Several adapters are in folders below.
    """
    folder = Path(model_id)
    if not folder.is_dir() or any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        return model_id
    found = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
    if len(found) > 1:
        raise ValueError(
            f"{model_id}: holds several adapters, {', '.join(path.name for path in found)}; give the folder of one, as "
            f"{found[0]}"
        )
    return str(found[0]) if found else model_id


def lasting_name(model_id: str | None) -> str | None:
    """What a new adapter is to call its base model: a hub id as it is, and a folder by its absolute path.

    A relative one would be looked for wherever the adapter is loaded later.
    """
    return str(Path(model_id).absolute()) if model_id and Path(model_id).is_dir() else model_id


def name_base_for_good(model: PreTrainedModel | PeftModel) -> None:
    """Has the adapters of a PEFT model name their base model so that it is found from any folder."""
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            named = config.base_model_name_or_path or model.get_base_model().name_or_path
            config.base_model_name_or_path = lasting_name(named or None)


def read_adapter_config(model_id: str, revision: str = "main", base_of: str | None = None) -> PeftConfig | None:
    """The configuration of an adapter (folder or hub id) that names its base model; None if `model_id` is no adapter.

    Args:
        model_id: Folder or hub id.
        revision: Branch, tag or commit on the hub.
        base_of: The adapter whose base model this should be, for the message.
    """
    model_id = adapter_folder(model_id)
    with _loading(model_id, base_of):
        if find_adapter_config_file(model_id, revision=revision) is None:
            return None
        config = _peft_config(model_id, revision)
    if not config.base_model_name_or_path:
        raise ValueError(
            f"{model_id}: the adapter does not say which model it belongs to; write 'base_model_name_or_path' into its "
            "adapter_config.json"
        )
    return config


def _peft_config(adapter: str, revision: str = "main") -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(adapter, revision=revision)
    except KeyError as error:
        raise ValueError(
            f"its adapter_config.json names the method {error}, which this version of PEFT does not know"
        ) from error


def _load(
    auto_class: Any, model_id: str, adapter: str | None, revision: str, **model_kwargs: Any
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, list[str]]:
    own_config = read_adapter_config(model_id, revision)
    base_id, base_revision, adapter_revision = model_id, revision, "main"
    own_id = model_id if adapter is None else adapter
    adapter_config = own_config
    if adapter is not None:
        # Before the base model is loaded for nothing.
        with _loading(adapter):
            adapter_config = _peft_config(adapter_folder(adapter))
    if own_config is not None:
        base_id, base_revision = own_config.base_model_name_or_path, own_config.revision or "main"
        if adapter is not None:
            raise ValueError(
                f"{model_id} is itself an adapter, on {base_id}; merge it into its base model before adding {adapter}"
            )
        adapter, adapter_revision = adapter_folder(model_id), revision
        if read_adapter_config(base_id, base_revision, base_of=model_id) is not None:
            raise ValueError(
                f"{model_id}: its base model {base_id} is itself an adapter, and one adapter on another is not "
                "supported; merge the first into its base model, and name that in adapter_config.json"
            )
    base_of = None if own_config is None else model_id
    if auto_class is AutoModelForCausalLM:
        if adapter_config is not None:
            refuse_scoring_adapter(own_id, adapter_config)
        trust_remote_code = model_kwargs.get("trust_remote_code", False)
        with _loading(base_id, base_of):
            config = AutoConfig.from_pretrained(base_id, revision=base_revision, trust_remote_code=trust_remote_code)
        refuse_scoring_model(_with_role(base_id, base_of), config)
    heads = None if adapter_config is None else modules_saved_whole(adapter_config)
    with _loading(base_id, base_of), reports_of_files(heads or None):
        model, info = auto_class.from_pretrained(
            base_id, revision=base_revision, output_loading_info=True, **model_kwargs
        )
    missing = sorted(info["missing_keys"])
    model.name_or_path = model.config._name_or_path = lasting_name(base_id)
    if adapter is not None:
        adapter = adapter_folder(adapter)
        with _fitting(adapter, base_id, model):
            model, loaded = _add_adapter(model, adapter, adapter_revision)
        missing = [name for name in missing if not any(key.endswith(f".{name}") for key in loaded)]
    tokenizer_id, tokenizer_revision = base_id, base_revision
    # Beside an adapter one folder deeper stands the tokenizer of all.
    for place in () if adapter is None else (adapter, own_id):
        if _has_tokenizer(place, adapter_revision):
            tokenizer_id, tokenizer_revision = place, adapter_revision
            break
    trust_remote_code = model_kwargs.get("trust_remote_code", False)
    tokenizer = load_tokenizer(tokenizer_id, tokenizer_revision, trust_remote_code)
    check_vocabulary(model, tokenizer, model_id)
    return model, tokenizer, missing


def load_tokenizer(model_id: str, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder or Hub id; raises ValueError if there is none."""
    refuse_missing_folder(model_id)
    cure = "save the model's tokenizer there"
    if not Path(model_id).is_dir():
        cure = f"there is no such folder{nearest_path(model_id, only_folders=True)}, nor that Hub id"
    remedy = f"{model_id}: no tokenizer can be loaded from it; {cure}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_id, revision=revision, trust_remote_code=trust_remote_code)
    # A class that is called without its file may try to open None.
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{remedy}. {error}") from error
    # Where there is no file, most classes come empty: special tokens alone, in T5's case and one piece for the space.
    if len(tokenizer) - len(tokenizer.all_special_ids) <= 1:
        raise ValueError(f"{remedy}. Its vocabulary is missing")
    return tokenizer


def _add_adapter(model: PreTrainedModel, adapter: str, revision: str) -> tuple[PeftModel, list[str]]:
    """Puts an adapter on a model; also gives the names of the weights in its file."""
    config = _peft_config(adapter, revision)
    check_padding_is_unseen(adapter, config)
    _check_model_type(config, model)
    if config.task_type == "CAUSAL_LM" and not hasattr(model, "prepare_inputs_for_generation"):
        # A language model's adapter on a reward model: PEFT's class for the task would look for `generate`.
        config.task_type = None
    model = PeftModel.from_pretrained(model, adapter, config=config, revision=revision)
    weights = load_peft_weights(adapter, device="cpu", revision=revision)
    # PEFT drops weights that have no place without a word; only here does it name them.
    result = set_peft_model_state_dict(model, dict(weights))
    kind = type(model.get_base_model()).__name__
    if result.unexpected_keys:
        raise ValueError(f"the adapter holds weights that {kind} has no place for: {_some(result.unexpected_keys)}")
    # By the tuner's own names, as `lora_`: a module that was to be saved as a whole, as a score head, may be new.
    prefix = getattr(model.base_model, "prefix", None)
    lacking = [name for name in result.missing_keys if prefix is not None and prefix in name]
    if lacking:
        raise ValueError(f"the adapter holds no weights for {_some(lacking)} of {kind}, which would stay untrained")
    return model, list(weights)


def _check_model_type(config: PeftConfig, model: PreTrainedModel) -> None:
    """Refuses an adapter that names a base of another architecture, whose layers may well have the same names."""
    try:
        named = AutoConfig.from_pretrained(config.base_model_name_or_path, revision=config.revision or "main")
    except (OSError, ValueError):
        # It may be gone: the adapter is asked for by somebody who says what its base is.
        return
    if named.model_type != model.config.model_type:
        raise ValueError(f"it was trained on {config.base_model_name_or_path}, a model of type {named.model_type}")


def _some(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _merge_first(model_id: str, base_id: str, reason: str) -> str:
    return (
        f"{model_id} is an adapter, on {base_id}, and cannot be merged here: {reason}. Merge it first, in one process: "
        "`from pangu_trl.models.loading import load_merged; from transformers import AutoModelForCausalLM; "
        f"model, tokenizer, _ = load_merged(AutoModelForCausalLM, '{model_id}'); model.save_pretrained('MERGED'); "
        "tokenizer.save_pretrained('MERGED')` (a reward model: AutoModelForSequenceClassification and num_labels=1); "
        "then give MERGED in its place"
    )


@contextmanager
def _fitting(adapter: str, base_id: str, base: PreTrainedModel) -> Iterator[None]:
    """Names both where an adapter does not fit the model that it is put on."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        # PyTorch lists every tensor; the first says it.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("size mismatch")), " ".join(lines)).rstrip(".")
        raise ValueError(
            f"{adapter}: an adapter that cannot be put on {base_id} (model_type {base.config.model_type}); {reason}. "
            "Give the model that it was trained on, as adapter_config.json should name it, or that model merged with it"
        ) from error


def _with_role(model_id: str, base_of: str | None) -> str:
    return model_id if base_of is None else f"{model_id} (the base model that the adapter {base_of} names)"


def refuse_missing_folder(model_id: str, base_of: str | None = None) -> None:
    """Refuses a path that leads nowhere, which transformers would take for an ill-formed Hub id.

    Args:
        model_id: Folder or hub id.
        base_of: The adapter that names it as its base model.

    Raises:
        ValueError: There is no such folder; the message has the nearest one.
    """
    if is_path(model_id) and not Path(model_id).exists():
        raise ValueError(
            f"{_with_role(model_id, base_of)}: there is no such folder (looked for {Path(model_id).absolute()})"
            f"{nearest_path(model_id, only_folders=True)}"
        )


@contextmanager
def _loading(model_id: str, base_of: str | None = None) -> Iterator[None]:
    """Names the model in errors of the libraries that load it, some of which leave it out, and whose base it is."""
    refuse_missing_folder(model_id, base_of)
    try:
        yield
    # Damaged weights, a config.json with wrong types, and kernels that are not installed.
    except (
        *(OSError, ValueError, RuntimeError, ImportError),
        *(UnpicklingError, SafetensorError, StrictDataclassError),
    ) as error:
        reason = str(error)
        if "ignore_mismatched_sizes" in reason:
            reason = (
                "its weights have other sizes than config.json says, as the report above lists; one of the two belongs "
                "to another model"
            )
        if Path(model_id).is_file():
            reason = "it is a file; give the folder that it lies in"
        name = _with_role(model_id, base_of)
        hint = "" if Path(model_id).exists() else nearest_path(model_id, only_folders=True)
        raise ValueError(f"{name}: not a folder{hint} or hub id that can be loaded; {reason}") from error


def _has_tokenizer(adapter: str, revision: str) -> bool:
    try:
        return cached_file(adapter, "tokenizer_config.json", revision=revision) is not None
    except OSError:
        return False
