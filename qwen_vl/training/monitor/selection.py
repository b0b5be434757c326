"""Selection of the best checkpoint: the metrics of an evaluation, and the flags that need one."""

from typing import Any

MEASURED = ("loss", "runtime", "samples_per_second", "steps_per_second")  # an evaluation logs eval_loss, ..
LOWER_IS_BETTER = ("_without", "_unmatched")  # ends of figures of --eval_generate that count bad answers


def check(settings: Any) -> list[str]:
    """Return a line for each flag that needs a missing evaluation, and for a metric that no evaluation measures."""
    metric, problems = settings.metric_for_best_model, []
    if (settings.evaluation_strategy or settings.eval_strategy) == "no":
        needing = {
            "--eval_generate": settings.eval_generate,
            "--early_stopping_patience": settings.early_stopping_patience,
            "--load_best_model_at_end": settings.load_best_model_at_end,
            "--metric_for_best_model": metric,
            "--save_strategy best": settings.save_strategy == "best",
        }
        problems += [f"{flag} needs --eval_strategy and --eval_data_path" for flag, is_set in needing.items() if is_set]
    elif settings.save_strategy == "best" and not metric:
        problems.append("--save_strategy best needs --metric_for_best_model; give eval_loss")
    if settings.early_stopping_patience < 0:
        problems.append(f"--early_stopping_patience {settings.early_stopping_patience}: use 0 or more")
    if settings.label_names not in (None, ["labels"]):
        problems.append("--label_names: an evaluation finds its loss by the labels alone; leave the flag out")
    # The figures of --eval_generate depend on the data: `held_out.questions.check_metric` knows them.
    if metric and metric.removeprefix("eval_") not in MEASURED and not settings.eval_generate:
        known = ", ".join(f"eval_{name}" for name in MEASURED)
        problems.append(f"--metric_for_best_model {metric}: evaluation measures {known}; give eval_loss")
    return problems
