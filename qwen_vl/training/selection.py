"""Which checkpoint is the best: what evaluation measures, and which flags need an evaluation."""

MEASURED = ("loss", "runtime", "samples_per_second", "steps_per_second")  # what evaluation logs, as eval_loss ..


def check(settings):
    """A line for every flag that needs an evaluation and has none, and for a metric that no evaluation measures."""
    metric, problems = settings.metric_for_best_model, []
    if (settings.evaluation_strategy or settings.eval_strategy) == "no":
        needing = {
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
    if metric and metric.removeprefix("eval_") not in MEASURED:
        known = ", ".join(f"eval_{name}" for name in MEASURED)
        problems.append(f"--metric_for_best_model {metric}: evaluation measures {known}; give eval_loss")
    return problems
