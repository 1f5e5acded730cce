"""Publishing a saved folder on the Hub in one commit, after a look at what it would give away."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import httpx, validate_repo_id

from .custom_code import custom_code, referenced_code, write_json
from .folder import ModelFolder
from .model_card import CardFacts, last_stage, model_card
from .private_data import refuse_private_data

CARD = "README.md"
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.bin.index.json")


@dataclass(frozen=True)
class Publication:
    """What would be published, and where.

    Attributes:
        repo_id: "user/name".
        kind: What the folder holds: model, adapter or tokenizer.
        files: Where each file comes from, by its name in the repository: a path, or content that the folder does not
            have as such.
        left_out: Names in the folder that stay behind.
        base_model: Hub id that an adapter names.
        has_new_card: Whether README.md was written here rather than found in the folder.
    """

    repo_id: str
    kind: str
    files: dict[str, Path | bytes]
    left_out: list[str]
    base_model: str | None
    has_new_card: bool


@dataclass(frozen=True)
class Published:
    """What happened.

    Attributes:
        url: Address of the commit.
        files: Names that were uploaded.
        deleted: Weights of an earlier version that were deleted, as `from_pretrained` could prefer them.
        kept_card: Whether the repository's own README.md stayed instead of a new one.
    """

    url: str
    files: list[str]
    deleted: list[str]
    kept_card: bool


def prepare(
    folder: str | Path,
    repo_id: str,
    *,
    with_code: bool = False,
    base_model: str | None = None,
    stage: str | None = None,
    license: str | None = None,
    include: Sequence[str] = (),
) -> Publication:
    """Collects what a folder would publish. Changes nothing in the folder and asks no server.

    Args:
        folder: What `save_pretrained` or a recipe wrote: a model (sharded or not), a PEFT adapter, a tokenizer.
        repo_id: "user/name" on the Hub.
        with_code: Whether GPTPangu's code goes along, so that the repository loads where pangu_trl is not installed.
        base_model: Hub id of the model that training started from. An adapter that names a folder needs it.
        stage: Last training stage, a key of `STAGES`, for the model card; seen from the folder where that is possible.
        license: License identifier for the model card.
        include: Patterns of further files to publish, e.g. `images/*`.

    Raises:
        FileNotFoundError: The folder holds nothing that can be published, or lacks files.
        ValueError: A file is damaged or holds private data, or an id is none.
    """
    if not _is_hub_id(repo_id) or "/" not in repo_id:
        raise ValueError(f"expected the name of a repository as USER/NAME; got {repo_id!r}")
    saved = ModelFolder.open(folder)
    names, left_out = saved.files(include)
    code = referenced_code(saved.path) if not with_code else []
    files: dict[str, Path | bytes] = {name: saved.path / name for name in dict.fromkeys([*names, *code])}
    if with_code:
        files |= custom_code(saved.path)
    base_model = _base_model(saved, base_model)
    if saved.kind == "adapter":
        files["adapter_config.json"], local_base = _adapter_config(saved, base_model)
    card = _read_card(saved)
    has_new_card = card is None
    if card is None:
        stage = last_stage(saved, stage)
        card = model_card(saved, CardFacts(repo_id, stage, base_model, license, with_code or bool(code)))
    elif license or stage or (base_model and saved.kind != "adapter"):
        raise ValueError(
            f"{saved.path / CARD}: exists; write license, stage and base model there, or remove it to get a new card."
        )
    elif saved.kind == "adapter" and local_base != base_model:
        card = _rename_base_model(card, local_base, base_model)
    files[CARD] = card.encode()
    # Reads the header of every weight file, and so finds one that is cut short.
    saved.count_parameters()
    refuse_private_data(files, saved.path)
    left_out = [name for name in left_out if name not in files]
    return Publication(repo_id, saved.kind, files, left_out, base_model, has_new_card)


def publish(publication: Publication, *, private: bool = False, revision: str | None = None) -> Published:
    """Uploads it in one commit; a repository or branch that does not exist is created.

    Weights of an earlier version that are not among the new files are deleted in the same commit.

    Args:
        publication: What `prepare` gave.
        private: Whether only its owner may see the repository.
        revision: Branch to write to; the default branch if None.

    Raises:
        OSError: The Hub refuses, or cannot be reached.
        ValueError: The repository holds something else, is public though `private` was asked for, or the base model of
            an adapter is not on the Hub.
    """
    api = HfApi()
    try:
        return _upload(api, publication, private, revision)
    except httpx.TransportError as error:
        raise ConnectionError(f"{publication.repo_id}: cannot reach the Hub at {api.endpoint}; {error}") from error


def _upload(api: HfApi, publication: Publication, private: bool, revision: str | None) -> Published:
    repo_id = publication.repo_id
    if publication.kind == "adapter" and not api.repo_exists(publication.base_model):
        raise ValueError(
            f"{repo_id}: its base model {publication.base_model} is not on the Hub (or not for you); publish it first"
        )
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise ValueError(f"{repo_id}: exists and is public; nothing was uploaded. Make it private first.")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    present = api.list_repo_files(repo_id, revision=revision)
    stale = _stale_weights(publication, present)
    kept_card = publication.has_new_card and CARD in present
    files = {name: source for name, source in publication.files.items() if not (kept_card and name == CARD)}
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=source) for name, source in files.items()]
    operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
    commit = api.create_commit(
        repo_id, operations, commit_message=f"Publish {publication.kind} with pangu_trl", revision=revision
    )
    return Published(commit.commit_url, sorted(files), stale, kept_card)


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _base_model(folder: ModelFolder, base_model: str | None) -> str | None:
    """The hub id of the base model: as given, or as an adapter names it."""
    if base_model is not None and not _is_hub_id(base_model):
        raise ValueError(f"expected the Hub id of the base model; got {base_model!r}")
    if folder.kind != "adapter" or base_model is not None:
        return base_model
    named = folder.adapter_config.get("base_model_name_or_path") or ""
    if not _is_hub_id(named) or Path(named).exists():
        raise ValueError(
            f"{folder.path / 'adapter_config.json'}: names its base model by a folder, {named!r}, which nobody else "
            "has. Publish the base model first, and give its Hub id as base_model (--base-model)."
        )
    return named


def _adapter_config(folder: ModelFolder, base_model: str) -> tuple[bytes, str]:
    """The configuration that names the base model on the Hub, and the name that it had."""
    config = dict(folder.adapter_config)
    named = config.get("base_model_name_or_path") or ""
    if named != base_model:
        # The revision belonged to the other place.
        config |= {"base_model_name_or_path": base_model, "revision": None}
    return write_json(config), named or base_model


def _read_card(folder: ModelFolder) -> str | None:
    """The folder's README.md; None if there is none, or if it is the form that PEFT leaves and nobody filled in."""
    path = folder.path / CARD
    if not path.exists():
        return None
    card = ModelCard.load(path, ignore_metadata_errors=True)
    form = {line.strip() for line in ModelCard.from_template(ModelCardData()).text.splitlines()}
    own = [line for line in card.text.splitlines() if line.strip() not in form]
    is_blank = all(line.startswith(("### Framework versions", "- PEFT ")) for line in own)
    return None if is_blank else path.read_text("utf-8")


def _rename_base_model(card: str, local_base: str, base_model: str) -> str:
    """Puts the hub id in the place of the path that PEFT writes into the metadata of every card."""
    name = re.compile(rf"(?<![\w./-]){re.escape(local_base)}(?![\w./-])")
    metadata = re.match(r"\A---\n.*?\n---\n", card, flags=re.DOTALL)
    # A relative path may be a word of the text, an absolute one is private.
    end = len(card) if Path(local_base).is_absolute() else metadata.end() if metadata else 0
    return name.sub(base_model, card[:end]) + card[end:]


def _stale_weights(publication: Publication, present: list[str]) -> list[str]:
    if publication.kind == "tokenizer":
        return []
    held = "adapter" if "adapter_config.json" in present else "model" if "config.json" in present else None
    if held not in (None, publication.kind):
        raise ValueError(
            f"{publication.repo_id}: holds the files of {'an' if held == 'adapter' else 'a'} {held}; publish the "
            f"{publication.kind} in another repository. Nothing was uploaded."
        )
    return [
        name
        for name in present
        if name not in publication.files and any(fnmatch(name, pattern) for pattern in WEIGHT_FILES)
    ]
