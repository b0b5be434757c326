"""The private names of transformers' Trainer that we use: in one file only, as in the installed release."""

import ast
import inspect
import re
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from transformers import Trainer

from qwen_vl.training.trainer_hooks import HookedTrainer

HOOKS = Path(inspect.getfile(HookedTrainer))
PACKAGE = HOOKS.parents[1]
EXPECTED = {  # parameters after self
    "_run_epoch": "model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial ignore_keys_for_eval "
    "start_time resume_from_checkpoint epochs_trained steps_trained_in_current_epoch",
    "_init_training_state": "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
    "_get_output_dir": "trial",
    "_save_checkpoint": "model trial",
    "_save": "output_dir state_dict",
    "_push_from_checkpoint": "checkpoint_folder",
    "_finish_current_push": "",
    "_load_from_checkpoint": "resume_from_checkpoint model",
    "_load_optimizer_and_scheduler": "checkpoint",
    "_load_rng_state": "checkpoint",
    "_maybe_log_save_evaluate": "tr_loss grad_norm model trial epoch ignore_keys_for_eval start_time learning_rate",
    "_get_num_items_in_batch": "batch_samples device",
    "_determine_best_metric": "metrics trial",
    "_evaluate": "trial ignore_keys_for_eval skip_scheduler",
}
COUNTERS = {"_tr_loss", "_globalstep_last_logged", "_total_loss_scalar", "_initial_global_step", "_train_batch_size"}


def private_names():
    """Return the methods and attributes of Trainer that begin with one underscore."""
    attributes = re.findall(r"self\.(_[a-z]\w+)", inspect.getsource(Trainer))
    return {name for name in (*vars(Trainer), *attributes) if name.startswith("_") and not name.startswith("__")}


def used_names(path):
    """Return the attributes that a file reads, sets or defines as methods."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return attributes | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_hook_has_the_expected_signature():
    found = {name: list(inspect.signature(getattr(Trainer, name)).parameters)[1:] for name in EXPECTED}
    assert found == {name: parameters.split() for name, parameters in EXPECTED.items()}


def test_the_list_is_that_of_the_file():
    """Check that the file uses exactly the names of the list."""
    assert used_names(HOOKS) & private_names() == {*EXPECTED, *COUNTERS}
    source = inspect.getsource(Trainer)
    for name in COUNTERS:
        assert re.search(rf"self\.{name} = ", source), name
    assert {"_init_training_state", "_run_epoch"} <= {name for name in EXPECTED if f"self.{name}(" in source}


def test_our_names_are_not_those_of_transformers():
    ours = {name for name in vars(HookedTrainer) if not name.startswith("_")}
    theirs = {*dir(Trainer), *re.findall(r"self\.(\w+)", inspect.getsource(Trainer))}
    assert len(ours) > 15 and not ours & theirs


def test_no_other_file_knows_a_private_name():
    wrong = []
    names = private_names()
    assert len(names) > 50
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != HOOKS:
            wrong += [f"{path.relative_to(PACKAGE)}: {name}" for name in sorted(used_names(path) & names)]
    assert not wrong, wrong


def test_the_dependency_allows_the_releases_that_were_tested():
    (line,) = re.findall(r'^ *"(transformers[^"]*)",', (PACKAGE.parent / "pyproject.toml").read_text(), re.MULTILINE)
    allowed = Requirement(line).specifier
    assert version("transformers") in allowed and "5.24.0" not in allowed
