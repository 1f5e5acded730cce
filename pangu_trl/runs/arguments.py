"""What the script of a stage asks for besides data, model and the options of its trainer."""

from dataclasses import dataclass, field

from .judge_form import FORM_HELP, FORMS


@dataclass
class PPOModelArguments:
    """The rewards of a PPO run, what its critic starts from, and texts to go on learning from."""

    reward_model: list[str] = field(
        default_factory=list,
        metadata={
            "help": "One reward or several: trained reward models (folders or Hub ids), functions as "
            "path/to/file.py:function or module:function, reward services as http://HOST:PORT/PATH."
        },
    )
    reward_service_timeout: float = field(
        default=60.0, metadata={"help": "Seconds to wait for the scores of a reward service."}
    )
    reward_service_retries: int = field(
        default=3, metadata={"help": "How often a reward service is asked again that does not answer."}
    )
    value_model: str | None = field(
        default=None, metadata={"help": "Model that the critic starts from. Default: the first reward that is a model."}
    )
    ptx_data: str | None = field(
        default=None, metadata={"help": "Texts whose language-model loss is mixed in, in the forms of train_data."}
    )
    ptx_kind: str = field(
        default="text",
        metadata={
            "help": "Records of ptx_data: text, or demonstration, whose completions are learnt.",
            "choices": ["text", "demonstration"],
        },
    )

    def __post_init__(self) -> None:
        # A single name of a YAML file comes as a word, and is kept as one in the records of runs.
        if isinstance(self.reward_model, list | tuple) and len(self.reward_model) == 1:
            self.reward_model = self.reward_model[0]
        if not self.reward_model:
            raise ValueError(
                "reward_model is required: the folder of a trained reward model or its Hub id, a function as "
                "file.py:function, or the address of a reward service."
            )
        twice = [name for name in self.rewards if self.rewards.count(name) > 1]
        if twice:
            raise ValueError(f"reward_model names {twice[0]!r} more than once; give it a weight in reward_weights.")
        for name in ("reward_service_timeout", "reward_service_retries"):
            is_default = getattr(self, name) == self.__dataclass_fields__[name].default
            if not is_default and not any("://" in reward for reward in self.rewards):
                raise ValueError(f"{name} has no effect: no reward_model is the address of a service. Leave it out.")

    @property
    def rewards(self) -> list[str]:
        """The rewards, be there one or several."""
        return [self.reward_model] if isinstance(self.reward_model, str) else list(self.reward_model)


@dataclass
class JudgeArguments:
    """The judge of a GRPO run."""

    reward_model: str = field(
        default="",
        metadata={
            "help": "Trained reward model, a folder or a Hub id; path/to/file.py:function, or module:function; or a "
            "reward service, http://HOST:PORT/PATH."
        },
    )

    judge_form: str = field(default="record", metadata={"help": f"Of a function: {FORM_HELP}.", "choices": list(FORMS)})

    def __post_init__(self) -> None:
        if not self.reward_model:
            raise ValueError("reward_model is required: a trained reward model, or a function as file.py:function.")


# By stage; the others have none.
OWN_OPTIONS: dict[str, tuple[type, ...]] = {"ppo": (PPOModelArguments,), "grpo": (JudgeArguments,)}


@dataclass
class RunArguments:
    """How a run goes on, and ends."""

    change_on_resume: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Options whose new value is to hold from the checkpoint on, as in `--change_on_resume "
            "learning_rate kl_coef`. Without it a run that resumes with another value is refused."
        },
    )

    def __post_init__(self) -> None:
        # A single name of a YAML file comes as a word.
        if isinstance(self.change_on_resume, str):
            self.change_on_resume = self.change_on_resume.split()
