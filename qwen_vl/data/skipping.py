"""Leaving records out, on purpose and by name: the skip manifest of a file, and the file without those records.

A manifest is JSON: {"file", "sha256", "skip": [{"record", "id", "reasons"}, ..]}. "record" is the place in the file
("[3]" in a JSON list, ":4" in JSON Lines), "id" the record's own id or null; an entry needs one of the two, and with
an id alone it means every record with this id.
"""

import hashlib
import json
import logging
import re
from pathlib import Path

from .files import whole_file
from .validation import DataError, shown

logger = logging.getLogger(__name__)

SPACE = re.compile(r"[ \t\n\r]*")  # between JSON values
MAX_NAMED = 10  # records that a log line or an error names; the rest is counted


class SkipManifest:
    """What a manifest says about the data file at `data_path`: `takes` every record in turn, then `finish`.

    Raises DataError for a manifest that is none, or that was made for another content of the file.
    """

    def __init__(self, path, data_path):
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
        self._found, self.skipped = set(), []  # what the manifest names; names of the records left out

    def takes(self, place, record):
        """Whether the record at a place is to be left out."""
        name = own_id(record)
        if place in self._places and self._places[place] in (None, name):
            self._found.add(place)
        elif name is not None and name in self._ids:
            self._found.add((name,))
        else:
            return False
        self.skipped.append(place if name is None else f"{place} (id {shown(name)})")
        return True

    def finish(self, num_kept):
        """Log what was left out; DataError where a named record is not in the file, or none is left."""
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
                "%s: %d of %d records left out, as %s says: %s",
                *(self.data_path, len(self.skipped), len(self.skipped) + num_kept, self.path, _few(self.skipped)),
            )


def own_id(record):
    """The id that a record itself has, if it can be one, else None."""
    name = record.get("id") if isinstance(record, dict) else None
    return name if isinstance(name, str | int) and not isinstance(name, bool) else None


def _few(names):
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _load(path):
    """The content of a manifest, checked."""
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


def sha256(path):
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# ---- making them ----------------------------------------------------------------------------------------------------


def write_manifest(data_path, out, bad):
    """Write the skip manifest of a data file. bad: {place: (own id or None, [reason, ..])}."""
    in_order = sorted(bad.items(), key=lambda item: int(item[0].strip("[]:")))
    skip = [{"record": place, "id": name, "reasons": reasons} for place, (name, reasons) in in_order]
    content = {"file": Path(data_path).name, "sha256": sha256(data_path), "skip": skip}
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    with whole_file(out) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_cleaned(data_path, out, places):
    """Write a data file less the records at `places`; all others stay byte for byte."""
    is_list = any(place.startswith("[") for place in places)
    pieces = _elements(data_path, places) if is_list else _lines(data_path, places)
    with whole_file(out) as file:
        file.writelines(pieces)


def _lines(path, places):
    """Yields the lines of a JSON Lines file that are not at `places`."""
    with open(path, "rb") as file:
        yield from (line for number, line in enumerate(file, start=1) if f":{number}" not in places)


def _elements(path, places):
    """Yields the text of a JSON list in pieces, less the elements at `places` and the commas before them."""
    text = Path(path).read_bytes().decode()  # with its byte order mark, if any
    scan = json.JSONDecoder().raw_decode
    position = text.index("[") + 1
    yield text[:position].encode()
    end, is_first, index = position, True, 0
    while True:
        start = SPACE.match(text, position).end()
        before = text[position if is_first else end : start]  # the comma and the space around it
        _, end = scan(text, start)
        if f"[{index}]" not in places:
            is_first = False
            yield (before + text[start:end]).encode()
        position = SPACE.match(text, end).end() + 1  # behind the comma, or the bracket that closes the list
        if text[position - 1] == "]":
            yield text[end:].encode()
            return
        index += 1
