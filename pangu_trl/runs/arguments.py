"""What the script of a stage asks for besides data, model and the options of its trainer."""

from dataclasses import dataclass, field

from .judge_form import FORM_HELP, FORMS


@dataclass
class PPOModelArguments:
    """The judge of a PPO run, what its critic starts from, and texts to go on learning from."""

    reward_model: str = field(default="", metadata={"help": "Trained reward model: a folder or a Hub id."})
    value_model: str | None = field(
        default=None, metadata={"help": "Model that the critic starts from. Default: reward_model."}
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
        if not self.reward_model:
            raise ValueError("reward_model is required: the folder of a trained reward model, or its Hub id.")


@dataclass
class JudgeArguments:
    """The judge of a GRPO run."""

    reward_model: str = field(
        default="",
        metadata={
            "help": "Trained reward model, a folder or a Hub id; or path/to/file.py:function, or module:function."
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
