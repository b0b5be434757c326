"""Fine-tune a Qwen-VL checkpoint on conversations with images: the story of one run.

    python finetune.py [config.yaml] --model_name_or_path MODEL --data_path DATA.json --output_dir OUT [--use_lora] ..

`python finetune.py --help` lists every flag.
"""

from collections.abc import Sequence

from qwen_vl.cli.run import run


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line `argv` says; the trained model or adapter is then in --output_dir."""
    from qwen_vl.training.flags import arguments

    flags = arguments.parse(argv)
    # Heavy imports come after the flags are known to be right, so that a typo costs no half minute.
    from qwen_vl.training import preflight, recipe

    flags.training.start()  # from here on the processes of the run are connected
    recipe.log_to_stderr(flags.training)

    prepared = recipe.prepare(flags)
    if recipe.is_finished(prepared, flags.training):
        return
    data = recipe.load_data(flags.data, flags.training, prepared.tokenizer, prepared.checkpoint)
    preflight.check(data.train, flags.training, prepared.rows, checkpoint=prepared.checkpoint)
    preflight.check_questions(
        data.questions, flags.training, prepared.tokenizer, longest=prepared.folder.config.seq_length
    )
    prepared.settled.report()

    loaded = recipe.load_model(prepared, flags)
    trainer = recipe.make_trainer(prepared, flags, data, loaded)
    trainer.train(resume_from_checkpoint=prepared.checkpoint and prepared.checkpoint.path)
    trainer.exit_if_stopped()
    recipe.write_results(prepared, flags, loaded, trainer)
    trainer.check_trained()


if __name__ == "__main__":
    run(main)
