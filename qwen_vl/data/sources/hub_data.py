"""Data sets by name: `hf:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]` from Hugging Face, `ms:..` from ModelScope.

The files of the repository are downloaded (`hubs.download`), and `datasets` reads them, whatever their kind, into Arrow
files of its cache, which are mapped into memory from then on.
"""

import functools
import os
import re
from pathlib import Path
from typing import Any

from qwen_vl.data.validation import DataError
from qwen_vl.hubs import download

PART = r"[A-Za-z0-9][\w.-]*"
NAME = re.compile(rf"(hf|ms):({PART}/{PART})(?:/({PART}))?(?:@([\w.-][\w./-]*))?(?::({PART}))?")


def is_hub_name(path: str | os.PathLike) -> bool:
    """Return whether a path of data is the name of a data set on a hub. An existing file of that name wins."""
    return str(path)[:3] in ("hf:", "ms:") and not os.path.exists(path)


@functools.cache
def hub_files(text: str) -> tuple[Path, ...]:
    """Return the Arrow files of one split of a data set on a hub, downloaded and read once.

    Raise DataError if the name is wrong, or if there are several splits or configs and none is named; ImportError
    without `datasets`; and what `download.dataset_folder` raises.
    """
    match = NAME.fullmatch(text)
    if match is None:
        raise DataError(f"{text}: no name of a data set; write hf:OWNER/NAME:SPLIT, or ms:.. for ModelScope")
    hub, repo, config, revision, split = match.groups()
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{text}: data from a hub need `datasets`; pip install 'qwen-vl[hub]'") from error
    folder = download.dataset_folder(f"{hub}:{repo}" + (f"@{revision}" if revision else ""))
    try:
        config = config or _only(text, "config", datasets.get_dataset_config_names(folder), f"{hub}:{repo}/{{}}")
        known = datasets.get_dataset_split_names(folder, config)
        split = split or _only(text, "split", known, f"{text}:{{}}")
        if split not in known:
            raise DataError(f"{text}: has no split {split!r}, only {', '.join(known)}; name one of them")
        data: Any = datasets.load_dataset(folder, config, split=split)
    except (DataError, ImportError):
        raise
    except Exception as error:  # of the many kinds of files that it reads
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{text}: `datasets` cannot read it ({reason}); download it and give its files") from error
    files = tuple(Path(entry["filename"]) for entry in data.cache_files)
    if not files or not len(data):
        raise DataError(f"{text}: no records; give at least one conversation")
    return files


def _only(text: str, what: str, names: list[str], example: str) -> str:
    """Return the only name of a list; raise DataError, with an example, if there are several."""
    if len(names) == 1:
        return names[0]
    raise DataError(
        f"{text}: has the {what}s {', '.join(names)}; name one of them, such as {example.format(names[0])!r}"
    )
