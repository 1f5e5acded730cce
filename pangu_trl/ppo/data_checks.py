"""What PPOTrainer refuses of its data before anything is sampled."""

from typing import Any

from datasets import Dataset

from pangu_trl.answers.python_scores import check_columns, check_needed_columns

from .config import PPOConfig
from .evaluation import FIGURES
from .reward_sources import FunctionReward, RewardSource


def check_datasets(train_dataset: Any, eval_dataset: Any) -> None:
    """Refuses prompts in another form than a dataset whose rows can be counted, and sets without any.

    Raises:
        ValueError: The message says how to make one.
    """
    named = (
        {f"eval_dataset[{name!r}]": part for name, part in eval_dataset.items()}
        if isinstance(eval_dataset, dict)
        else {"eval_dataset": eval_dataset}
    )
    for name, prompts in ({"train_dataset": train_dataset} | named).items():
        if prompts is None:
            continue
        if not isinstance(prompts, Dataset):
            raise ValueError(
                f"PPOTrainer: {name} must be a datasets.Dataset; got {type(prompts).__name__}. Make one of a list with "
                "Dataset.from_list, load one without streaming, and take one split of several."
            )
        if len(prompts) == 0:
            raise ValueError(f"PPOTrainer: {name} is empty. Leave it out, or give it prompts.")


def check_best_metric(args: PPOConfig, eval_dataset: Any) -> None:
    """Refuses to look for the best model by a figure that no evaluation gives, which the first one would find out.

    Raises:
        ValueError: The message lists the figures.
    """
    if not args.load_best_model_at_end and args.lr_scheduler_type != "reduce_lr_on_plateau":
        return
    sets = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else [""]
    known = [f"{name}{figure}" for name in sets for figure in FIGURES]
    metric = args.metric_for_best_model or "loss"
    if metric.removeprefix("eval_") not in known:
        raise ValueError(
            "PPOTrainer: metric_for_best_model must be a figure of the evaluation, which has no loss: "
            f"{', '.join(known)}; got {metric!r}. With kl/mean set greater_is_better to false too."
        )


def check_data_columns(rewards: list[RewardSource], judge: Any, *prompt_sets: Any) -> None:
    """Refuses prompts without a column that a Python reward or the judge needs, or with one that it could not be given.

    Raises:
        ValueError: The message names the column.
    """
    functions = {f"the reward function {r.name!r}": r.function for r in rewards if isinstance(r, FunctionReward)}
    if judge is not None:
        functions["the judge"] = judge
    if not functions:
        return
    for prompts in prompt_sets:
        for part in prompts.values() if isinstance(prompts, dict) else [prompts]:
            names = set() if part is None else set(part.column_names)
            try:
                check_columns(names)
                for name, function in functions.items() if part is not None else ():
                    check_needed_columns(name, function, names - {"prompt"})
            except ValueError as error:
                raise ValueError(f"PPOTrainer: {error}.") from error
