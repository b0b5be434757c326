"""Skip manifests: files that name the records of a data file that a run skips.

A manifest is JSON: {"file", "sha256", "skip": [{"record", "id", "reasons"}, ..]}. "record" is the place in the file
("[3]" in a JSON list or a table, ":4" in JSON Lines, "/NAME[3]" in a folder), "id" the record's own id or null; an
entry needs one of the two, and with an id alone it means every record with this id.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_vl.data.sources.locating import locate
from qwen_vl.files import whole_file

from .digests import file_digest
from .validation import DataError, shown

logger = logging.getLogger(__name__)

NUMBER = re.compile(r"(.*?)[\[:]([0-9]+)\]?", re.DOTALL)  # of a place: the file's name and the number in it
MAX_NAMED = 10  # records that a log line or an error names; the rest is counted


class SkipManifest:
    """The manifest of the data file at `data_path`: call `takes` for every record in turn, then `finish`.

    Raises DataError if the file is not a manifest, or if it was made for another content of the data file.
    """

    def __init__(self, path: str | os.PathLike, data_path: str | os.PathLike) -> None:
        self.path, self.data_path = path, data_path
        content = _load(path)
        digest = sha256(data_path)
        if content["sha256"] != digest:
            raise DataError(
                f"skip manifest {path}: made for {shown(content.get('file'))} with sha256 {content['sha256'][:12]}.., "
                f"but {data_path} has {digest[:12]}..; give the manifest of this file, or make it again with "
                f"`qwen-vl data check {data_path} --fix OUT.json`"
            )
        entries = content["skip"]
        self._places = {entry["record"]: entry.get("id") for entry in entries if entry.get("record") is not None}
        self._ids = {entry["id"] for entry in entries if entry.get("record") is None}
        self._found: set[object] = set()  # entries of the manifest that were in the file
        self.skipped: list[str] = []  # names of the skipped records

    def takes(self, place: str, record: object) -> bool:
        """Return whether the record at a place is skipped."""
        name = own_id(record)
        if place in self._places and self._places[place] in (None, name):
            self._found.add(place)
        elif name is not None and name in self._ids:
            self._found.add((name,))
        else:
            return False
        self.skipped.append(place if name is None else f"{place} (id {shown(name)})")
        return True

    def finish(self, num_kept: int) -> None:
        """Log what was skipped. Raise DataError if a named record is not in the file, or if no record is left."""
        lost = [f"{place} (id {shown(name)})" if name is not None else place for place, name in self._places.items()
                if place not in self._found]  # fmt: skip
        lost += [f"id {shown(name)}" for name in self._ids if (name,) not in self._found]
        if lost:
            raise DataError(
                f"skip manifest {self.path}: not in {self.data_path}: {_few(lost)}; remove what is not there"
            )
        if not num_kept:
            raise DataError(f"skip manifest {self.path}: leaves no record of {self.data_path}; correct the data")
        if self.skipped:
            logger.warning(
                "%s: skipped %d of %d records, which %s names: %s",
                *(self.data_path, len(self.skipped), len(self.skipped) + num_kept, self.path, _few(self.skipped)),
            )


def own_id(record: object) -> str | int | None:
    """Return the id that a record itself has, or None if it has none of a valid type."""
    name = record.get("id") if isinstance(record, dict) else None
    return name if isinstance(name, str | int) and not isinstance(name, bool) else None


def _few(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _load(path: str | os.PathLike) -> dict[str, Any]:
    """Return the checked content of a manifest."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"skip manifest {path}: not JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("sha256"), str) or "skip" not in content:
        raise DataError(f"skip manifest {path}: use an object with file, sha256 and skip, as `--fix` writes it")
    entries = content["skip"]
    if not isinstance(entries, list):
        raise DataError(f"skip manifest {path}: skip is no list; use one of {{record, id, reasons}}")
    for index, entry in enumerate(entries):
        place, name = (entry.get("record"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(place, str | None) or (name is not None and own_id(entry) is None) or place is name is None:
            raise DataError(
                f"skip manifest {path}: skip[{index}]: {shown(entry)}; give the record's place, its id, or both"
            )
    return content


def sha256(path: str | os.PathLike) -> str:
    """Return the hex SHA-256 of a file's bytes; else that of the names and digests of its files."""
    files, _, _, inputs = locate(path)
    if [(Path(path), "")] != files:
        lines = [f"{prefix} {file_digest(file)}\n" for file, prefix in files]
        lines += [f"{file_digest(file)}\n" for file in inputs]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    return file_digest(path)


# ---- making them ----------------------------------------------------------------------------------------------------


def write_manifest(
    data_path: str | os.PathLike, out: str | os.PathLike, bad: Mapping[str, tuple[str | int | None, list[str]]]
) -> None:
    """Write the skip manifest of a data file. bad: {place: (own id or None, [reason, ..])}."""
    in_order = sorted(bad.items(), key=lambda item: _order(item[0]))
    skip = [{"record": place, "id": name, "reasons": reasons} for place, (name, reasons) in in_order]
    content = {"file": Path(data_path).name, "sha256": sha256(data_path), "skip": skip}
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    with whole_file(out) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def _order(place: str) -> tuple[str, int]:
    """Return the sort key of a place: the file's name, then the number."""
    match = NUMBER.fullmatch(place)
    assert match is not None, f"{place!r} is no place of a record"
    name, number = match.groups()
    return name, int(number)
