"""Model cards: what a published folder holds, what it was made from, and how to load it."""

from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCardData
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pangu_trl.data.answer_end import turn_end
from pangu_trl.gptpangu.configuration_gptpangu import MODEL_TYPES
from pangu_trl.runs.folders import STAGES, VALUE_HEAD_FILE, VALUE_MODEL_FOLDER

from .custom_code import TOKENIZER_CLASS, read_json
from .folder import ModelFolder


@dataclass(frozen=True)
class CardFacts:
    """What a folder does not say itself.

    Attributes:
        repo_id: Where the folder will be found.
        stage: A key of `STAGES`; None if unknown.
        base_model: Hub id of the model that training started from; None if unknown.
        license: Identifier of the license on the Hub; None leaves it out.
        has_custom_code: Whether the code of GPTPangu travels along.
    """

    repo_id: str
    stage: str | None
    base_model: str | None
    license: str | None
    has_custom_code: bool


def model_card(folder: ModelFolder, facts: CardFacts) -> str:
    """Writes a README.md with the metadata that the Hub reads."""
    is_reward = facts.stage == "reward"
    is_classifier = _auto_class(folder) == "AutoModelForSequenceClassification"
    pipeline = None if folder.kind == "tokenizer" else "text-classification" if is_classifier else "text-generation"
    metadata = ModelCardData(
        library_name="peft" if folder.kind == "adapter" else "transformers",
        pipeline_tag=pipeline,
        base_model=facts.base_model,
        license=facts.license,
        tags=["pangu_trl"] + ([facts.stage] if facts.stage else []) + (["reward-model"] if is_reward else []),
    )
    lines = [f"# {facts.repo_id.partition('/')[2]}", "", _description(folder, facts), ""]
    if facts.stage:
        lines += [f"- Last training stage: {STAGES[facts.stage]}"]
    if facts.base_model:
        lines += [f"- Base model: [{facts.base_model}](https://huggingface.co/{facts.base_model})"]
    if folder.weight_files:
        lines += [f"- Stored parameters: {folder.count_parameters():,}"]
    lines += ["", *_loading(folder, facts)]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def last_stage(folder: ModelFolder, given: str | None, tags: Sequence[str] = ()) -> str | None:
    """The stage that wrote a folder: as given, or where the folder shows it; PPO keeps its critic beside the policy.

    Args:
        folder: The folder.
        given: What the user says.
        tags: Those of the card that the trainer left, among them the stage.

    Raises:
        ValueError: There is no such stage, or it is said to be a reward model, and is none.
    """
    if given is not None and given not in STAGES:
        raise ValueError(f"expected one of the stages {', '.join(STAGES)}; got {given!r}")
    gives_one_score = _auto_class(folder) == "AutoModelForSequenceClassification" and (
        folder.kind == "adapter" or len(folder.config.get("id2label", ())) == 1
    )
    if given == "reward" and not gives_one_score:
        raise ValueError(
            f"{folder.path}: stage reward is for sequence classification models with one label, and adapters for them; "
            f"the folder holds a {folder.kind} of another sort"
        )
    if given is not None:
        return given
    critics = (VALUE_MODEL_FOLDER, VALUE_HEAD_FILE)
    if folder.kind != "tokenizer" and any((folder.path / name).exists() for name in critics):
        return "ppo"
    if gives_one_score:
        return "reward" if folder.path.name != VALUE_MODEL_FOLDER else None
    return next((stage for stage in STAGES if stage in tags and stage != "reward"), None)


def _auto_class(folder: ModelFolder) -> str:
    architecture = next(iter(folder.config.get("architectures") or []), "")
    is_classifier = folder.adapter_config.get("task_type") == "SEQ_CLS" or "SequenceClassification" in architecture
    if is_classifier:
        return "AutoModelForSequenceClassification"
    has_head = folder.kind == "adapter" or architecture.endswith(("ForCausalLM", "LMHeadModel"))
    return "AutoModelForCausalLM" if has_head else "AutoModel"


def _is_gptpangu(folder: ModelFolder) -> bool:
    tokenizer_class = read_json(folder.path / "tokenizer_config.json").get("tokenizer_class")
    return folder.config.get("model_type") in MODEL_TYPES or tokenizer_class == TOKENIZER_CLASS


def _description(folder: ModelFolder, facts: CardFacts) -> str:
    architecture = "GPTPangu (PanGu-alpha)" if _is_gptpangu(folder) else folder.config.get("model_type", "")
    if folder.kind == "tokenizer":
        return "A tokenizer."
    what = {
        "AutoModelForCausalLM": "language model",
        "AutoModelForSequenceClassification": "sequence classification model",
        "AutoModel": "model without a head",
    }[_auto_class(folder)]
    if facts.stage == "reward":
        what = "reward model: it gives an answer to a prompt one score, higher is better"
    if folder.kind == "adapter":
        return f"A PEFT adapter ({folder.adapter_config.get('peft_type')}). With its base model it is a {what}."
    return f"{architecture} as a {what}."


def _loading(folder: ModelFolder, facts: CardFacts) -> list[str]:
    """The sections on how to load it, with pangu_trl and without."""
    is_gptpangu = _is_gptpangu(folder)
    sections = []
    if is_gptpangu:
        registering = "import pangu_trl  # registers GPTPangu"
        sections += ["## How to load it with pangu_trl", "", *_example(folder, facts, registering)]
    if facts.has_custom_code:
        notes = "transformers runs Python files of the repository: read them, and pin a `revision`."
        if is_gptpangu:
            notes += " The tokenizer needs `pip install sentencepiece jieba==0.42.1`."
        if folder.kind == "adapter":
            notes += " The base model must be published with its code, too."
        sections += [f"## How to load it{' without pangu_trl' if is_gptpangu else ''}", "", notes, ""]
        sections += _example(folder, facts, runs_custom_code=True)
    return sections or ["## How to load it", "", *_example(folder, facts)]


def _scored_text(folder: ModelFolder) -> list[str]:
    """Code that scores an answer where training read the score: at the token that ends it."""
    tokenizer = _own_tokenizer(folder)
    adds_end = tokenizer is not None and tokenizer("prompt")["input_ids"][-1:] == [tokenizer.eos_token_id]
    encoded, apart = '["input_ids"]', 'add_special_tokens=False)["input_ids"]'
    code = [
        f'ids = tokenizer("prompt"){encoded}{"[:-1]" if adds_end else ""}',
        f'ids += tokenizer("answer" + tokenizer.eos_token, {apart}',
        "# One text has no padding to look for: the score is read at its last token, even where that is the pad token.",
        "model.config.get_text_config().pad_token_id = -1",
        "score = model.eval()(torch.tensor([ids])).logits[0, 0].item()",
    ]
    end = None if tokenizer is None else turn_end(tokenizer)
    if end is not None:
        code += [
            "",
            "# The same of a conversation.",
            'messages = [{"role": "user", "content": "prompt"}]',
            "prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
            f"ids = tokenizer(prompt, {apart}",
            f'ids += tokenizer("answer" + {tokenizer.convert_ids_to_tokens(end)!r}, {apart}',
            "chat_score = model(torch.tensor([ids])).logits[0, 0].item()",
        ]
    return code


def _own_tokenizer(folder: ModelFolder) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer; None if it has none, or one of its own code."""
    if not (folder.path / "tokenizer_config.json").exists():
        return None
    try:
        return AutoTokenizer.from_pretrained(folder.path, trust_remote_code=False)
    except (OSError, ValueError):
        return None


def _example(
    folder: ModelFolder, facts: CardFacts, first_import: str | None = None, runs_custom_code: bool = False
) -> list[str]:
    """A block of Python that loads everything, and has a reward model score an answer."""
    trust = f", trust_remote_code={runs_custom_code}" if runs_custom_code else ""
    auto_class = _auto_class(folder)
    classes = ["AutoTokenizer"] if folder.kind == "tokenizer" else [auto_class, "AutoTokenizer"]
    imports = [first_import] if first_import else []
    code = []
    if folder.kind == "model":
        code = [f'model = {auto_class}.from_pretrained("{facts.repo_id}"{trust})']
    elif folder.kind == "adapter":
        imports += ["from peft import PeftModel"]
        labels = ", num_labels=1" if facts.stage == "reward" else ""
        code = [
            f'base = {auto_class}.from_pretrained("{facts.base_model}"{labels}{trust})',
            f'model = PeftModel.from_pretrained(base, "{facts.repo_id}")',
        ]
    has_tokenizer = (folder.path / "tokenizer_config.json").exists()
    if has_tokenizer or folder.kind == "adapter":
        tokenizer_id = facts.repo_id if has_tokenizer else facts.base_model
        code += [f'tokenizer = AutoTokenizer.from_pretrained("{tokenizer_id}"{trust})']
    else:
        classes.remove("AutoTokenizer")
    if facts.stage == "reward" and "AutoTokenizer" in classes:
        imports = ["import torch", *imports]
        code += ["", *_scored_text(folder)]
    return ["```python", *imports, f"from transformers import {', '.join(classes)}", "", *code, "```", ""]
