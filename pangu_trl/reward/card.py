"""What a reward model's folder says about itself, so that PPO can trust it: `reward_card.json`."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from pangu_trl.runs.folders import REWARD_CARD_FILE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardCard:
    """How a reward model was trained, and what its scores look like.

    Attributes:
        loss_type: Loss that trained it.
        max_answers: Largest K in its training data.
        vocab_size: Tokens of its tokenizer, added ones included.
        vocab_digest: Digest of tokens and ids.
        pad_token_id: Fills rows; the head looks for the last other token.
        eos_token_id: Ends every answer that it was trained on.
        chat_template_digest: Digest of the chat template, None if the tokenizer has none.
        score_mean: Mean score of the answers of its evaluation set; None if these very weights were not evaluated.
        score_std: Their standard deviation, likewise.
        scored_set: Which evaluation set that was, as the trainer calls it.
        attributes: Weight of each attribute in the score; None of a head with one output.
    """

    loss_type: str
    max_answers: int
    vocab_size: int
    vocab_digest: str
    pad_token_id: int
    eos_token_id: int
    chat_template_digest: str | None
    score_mean: float | None = None
    score_std: float | None = None
    scored_set: str | None = None
    attributes: dict[str, float] | None = None

    @property
    def score_statistics(self) -> dict[str, Any]:
        """The fields that an evaluation fills in."""
        return {"score_mean": self.score_mean, "score_std": self.score_std, "scored_set": self.scored_set}

    @classmethod
    def describe(cls, tokenizer: PreTrainedTokenizerBase, **training: Any) -> "RewardCard":
        """Fills in what the tokenizer says; the rest comes from the caller."""
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
        template = tokenizer.chat_template
        return cls(
            vocab_size=len(tokenizer),
            vocab_digest=_digest(vocabulary),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            chat_template_digest=None if template is None else _digest(json.dumps(template, sort_keys=True)),
            **training,
        )

    def save(self, folder: str | Path) -> None:
        """Writes the card into a model's folder."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (Path(folder) / REWARD_CARD_FILE).write_text(text + "\n", encoding="utf-8")


def read_reward_card(model_id: str | Path) -> RewardCard | None:
    """Reads the card of a reward model, a folder or Hub id; None if it has none, as models that were trained elsewhere.

    Raises:
        ValueError: The file is no reward card.
    """
    try:
        path = cached_file(str(model_id), REWARD_CARD_FILE)
    except OSError as error:
        if not Path(model_id).is_dir():
            # Having none and being out of reach look alike from here.
            logger.warning(
                "%s: no %s could be fetched, so no tokenizer is checked against it. %s",
                model_id,
                REWARD_CARD_FILE,
                error,
            )
        return None
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        return RewardCard(**content)
    except (ValueError, TypeError) as error:
        names = ", ".join(field.name for field in fields(RewardCard))
        raise ValueError(f"{path}: a reward card is a JSON object with {names}; {error}") from error


def check_reward_card(card: RewardCard, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuses a tokenizer whose tokens the reward model would read as other text than it was trained on.

    Args:
        card: Card of the reward model.
        tokenizer: Makes the token ids that the reward model will get.
        where: What the tokenizer belongs to, such as a folder; the error names it.

    Raises:
        ValueError: They do not fit; every difference is named.
    """
    found = RewardCard.describe(tokenizer, loss_type=card.loss_type, max_answers=card.max_answers)
    meanings = {
        "vocab_digest": f"the vocabulary ({card.vocab_size} tokens there, {found.vocab_size} here)",
        "pad_token_id": f"the pad id ({card.pad_token_id} there, {found.pad_token_id} here)",
        "eos_token_id": f"the end of sequence ({card.eos_token_id} there, {found.eos_token_id} here)",
        "chat_template_digest": "the chat template",
    }
    differences = [meaning for name, meaning in meanings.items() if getattr(card, name) != getattr(found, name)]
    if differences:
        raise ValueError(
            f"{where}: its tokenizer must be the one that the reward model was trained with; it differs in "
            f"{', '.join(differences)}. Use the reward model's tokenizer, or train the reward model with this one."
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
