"""Publishing a saved folder on the Hub in one commit, after a look at what it would give away."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id

from .blank_cards import is_blank, metadata, names_no_base
from .credentials import without_credentials
from .custom_code import custom_code, referenced_code, write_json
from .folder import ModelFolder, refuse_outside
from .model_card import CardFacts, last_stage, model_card
from .private_data import refuse_private_data

CARD = "README.md"
# What from_pretrained looks for at the root of a repository, with the shards that an index leads to.
LOADED_WEIGHTS = re.compile(
    r"(?:model\.safetensors|pytorch_model\.bin)(?:\.index\.json)?"
    r"|model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin"
)


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
        replaced_form: Whether it takes the place of a form that a library left in the folder and nobody filled in.
    """

    repo_id: str
    kind: str
    files: dict[str, Path | bytes]
    left_out: list[str]
    base_model: str | None
    has_new_card: bool
    replaced_form: bool = False


@dataclass(frozen=True)
class Plan:
    """What publishing would do to the repository as it is now.

    Attributes:
        creates_repo: Whether there is none yet.
        creates_branch: Whether the branch is made from the default one.
        deleted: Weights of an earlier version that would go.
        kept_card: Whether the repository's own README.md would stay instead of a new one.
    """

    creates_repo: bool
    creates_branch: bool
    deleted: list[str]
    kept_card: bool


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
    public_paths: Sequence[str] = (),
) -> Publication:
    """Collects what a folder would publish. Changes nothing in the folder and asks no server.

    Args:
        folder: What `save_pretrained` or a recipe wrote: a model (sharded or not), a PEFT adapter, a tokenizer.
        repo_id: "user/name" on the Hub.
        with_code: Whether GPTPangu's code goes along, so that the repository loads where pangu_trl is not installed.
        base_model: Hub id of the model that training started from. An adapter that names a folder needs it.
        stage: Last training stage, a key of `STAGES`, for the model card; seen from the folder where that is possible.
        license: License identifier for the model card.
        include: Patterns of further files to publish, e.g. `images/*`; see `ModelFolder.files`.
        public_paths: Paths that look private and are not.

    Raises:
        FileNotFoundError: The folder holds nothing that can be published, or lacks files.
        ValueError: A file is damaged, lies outside of the folder or holds private data, or an id is none.
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
    for name, source in files.items():
        if isinstance(source, Path):
            refuse_outside(saved.path, name)
    # Reads the header of every weight file, and so finds one that is cut short.
    saved.count_parameters()
    card = _read_card(saved)
    form = card if card is not None and is_blank(card) else None
    has_new_card = card is None or form is not None
    if has_new_card:
        left = {} if form is None else metadata(form)
        stage = last_stage(saved, stage, left.get("tags") or ())
        base_model = base_model or _named_by_trainer(left)
        card = model_card(saved, CardFacts(repo_id, stage, base_model, license, with_code or bool(code)))
    elif license or stage or (base_model and saved.kind != "adapter"):
        raise ValueError(
            f"{saved.path / CARD}: exists; write license, stage and base model there, or remove it to get a new card."
        )
    elif saved.kind == "adapter" and local_base != base_model:
        card = _rename_base_model(card, local_base, base_model)
    if not has_new_card:
        _refuse_wrong_base(saved.path / CARD, card)
    files[CARD] = card.encode()
    refuse_private_data(files, saved.path, public_paths)
    left_out = [name for name in left_out if name not in files]
    return Publication(repo_id, saved.kind, files, left_out, base_model, has_new_card, form is not None)


def plan(publication: Publication, *, private: bool = False, revision: str | None = None) -> Plan:
    """Asks the Hub what publishing would change there; changes nothing.

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
    with _named_errors(api, publication):
        return _plan(api, publication, private, revision)


def publish(publication: Publication, *, private: bool = False, revision: str | None = None) -> Published:
    """Uploads it in one commit; a repository or branch that does not exist is created.

    Weights of an earlier version that are not among the new files are deleted in the same commit. Takes and raises what
    `plan` does.
    """
    api = HfApi()
    with _named_errors(api, publication):
        return _upload(api, publication, private, revision)


@contextmanager
def _named_errors(api: HfApi, publication: Publication) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise ConnectionError(f"{publication.repo_id}: cannot reach the Hub at {api.endpoint}; {error}") from error


def _plan(api: HfApi, publication: Publication, private: bool, revision: str | None) -> Plan:
    repo_id = publication.repo_id
    if publication.kind == "adapter" and not api.repo_exists(publication.base_model):
        raise ValueError(
            f"{repo_id}: its base model {publication.base_model} is not on the Hub (or not for you); publish it first"
        )
    try:
        info = api.repo_info(repo_id)
    except RepositoryNotFoundError:
        return Plan(creates_repo=True, creates_branch=revision is not None, deleted=[], kept_card=False)
    if private and not info.private:
        raise ValueError(f"{repo_id}: exists and is public; nothing was uploaded. Make it private first.")
    try:
        present, creates_branch = api.list_repo_files(repo_id, revision=revision), False
    except RevisionNotFoundError:
        present, creates_branch = api.list_repo_files(repo_id), True
    kept_card = publication.has_new_card and CARD in present
    return Plan(False, creates_branch, _stale_weights(publication, present), kept_card)


def _upload(api: HfApi, publication: Publication, private: bool, revision: str | None) -> Published:
    repo_id = publication.repo_id
    change = _plan(api, publication, private, revision)
    if change.creates_repo:
        api.create_repo(repo_id, private=private or None)
    if change.creates_branch:
        api.create_branch(repo_id, branch=revision)
    files = {name: source for name, source in publication.files.items() if not (change.kept_card and name == CARD)}
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=source) for name, source in files.items()]
    operations += [CommitOperationDelete(path_in_repo=name) for name in change.deleted]
    commit = api.create_commit(
        repo_id, operations, commit_message=f"Publish {publication.kind} with pangu_trl", revision=revision
    )
    return Published(commit.commit_url, sorted(files), change.deleted, change.kept_card)


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
    """The folder's README.md; None if there is none."""
    path = folder.path / CARD
    if not path.exists():
        return None
    try:
        card = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, which the Hub reads; {error}. Save it as UTF-8.") from error
    try:
        metadata(card)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return card


def _named_by_trainer(form: dict[str, Any]) -> str | None:
    """The base model in the form that a trainer filled in, if it is one of the Hub."""
    named = form.get("base_model")
    return named if isinstance(named, str) and _is_hub_id(named) and not Path(named).exists() else None


def _refuse_wrong_base(path: Path, card: str) -> None:
    """Refuses a card that says "fine-tuned version of None", or names a folder as its base model."""
    if names_no_base(card):
        raise ValueError(
            f"{path}: says 'fine-tuned version of None', as TRL writes where training started from a folder. Write the "
            "base model there, or remove the file to get a new card."
        )
    named = metadata(card).get("base_model") or []
    for name in [named] if isinstance(named, str) else named:
        if not _is_hub_id(str(name)) or Path(str(name)).exists():
            shown = without_credentials(str(name))
            raise ValueError(
                f"{path}: names the base model by a folder, {shown!r}, which nobody else has. Write its Hub id there, "
                "or remove the file to get a new card."
            )


def _rename_base_model(card: str, local_base: str, base_model: str) -> str:
    """Puts the hub id in the place of the path that PEFT writes into the metadata of every card."""
    name = re.compile(rf"(?<![\w./-]){re.escape(local_base)}(?![\w./-])")
    metadata = re.match(r"\A---\n.*?\n---\n", card, flags=re.DOTALL)
    # A relative path may be a word of the text, an absolute one is private.
    end = len(card) if Path(local_base).is_absolute() else metadata.end() if metadata else 0
    return name.sub(base_model, card[:end]) + card[end:]


def _stale_weights(publication: Publication, present: list[str]) -> list[str]:
    """What of an earlier version from_pretrained could load instead of the new files.

    Raises:
        ValueError: The repository holds something of another kind.
    """
    if publication.kind == "tokenizer":
        return []
    held = "adapter" if "adapter_config.json" in present else "model" if "config.json" in present else None
    if held not in (None, publication.kind):
        raise ValueError(
            f"{publication.repo_id}: holds the files of {'an' if held == 'adapter' else 'a'} {held}; publish the "
            f"{publication.kind} in another repository. Nothing was uploaded."
        )
    if publication.kind == "adapter":
        return []
    return [name for name in present if name not in publication.files and LOADED_WEIGHTS.fullmatch(name)]
