"""Checks of decoded JSON: each returns a value of the right type or raises ApiError naming the parameter."""

import json
import math
from typing import Any, NoReturn

from qwen_vl.serving.protocol.errors import invalid

MAX_DEPTH = 64
MAX_COMMAS = 250_000  # of a body: more values take seconds and gigabytes to check
Path = tuple[()] | tuple[Any, str | int]  # the path of the container, and a key or an index; empty for the body
JSON_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def decode(content: bytes) -> dict[str, Any]:
    """Return the JSON object of a request body.

    Raise ApiError (400) for bytes that are not UTF-8, broken or deeply nested JSON, NaN and infinity, strings with half
    a surrogate pair, anything but an object, and very many values.
    """
    if content.count(b",") > MAX_COMMAS:
        raise invalid(None, f"the body has more than {MAX_COMMAS} values, the limit here", "limit_exceeded")
    try:
        body = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise invalid(
            None, f"the body is not UTF-8 at byte {error.start}; send JSON in UTF-8", "invalid_json"
        ) from None
    except RecursionError:
        raise invalid(None, "the body is nested too deeply", "invalid_json") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise invalid(None, f"the body is not JSON: {error.msg} at {where}", "invalid_json") from None
    except ValueError:  # a number of thousands of digits, NaN or infinity
        raise invalid(None, "the body has a number that cannot be read", "invalid_json") from None
    if not isinstance(body, dict):
        raise invalid(None, f"the body is {shown(body)}; send a JSON object", "invalid_json")
    check_strings(body)
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def check_strings(body: Any) -> None:
    """Raise ApiError if a string holds half a surrogate pair, which is no text, or values are nested too deeply."""
    waiting: list[tuple[Path, Any, int]] = [((), body, 0)]
    while waiting:
        path, value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise invalid(written(path)[:80], f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, str):
            check_text(value, path, "")
            continue
        if isinstance(value, dict):
            for key in value:
                check_text(key, path, "a key ")
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [((path, key), item, depth + 1) for key, item in inside if isinstance(item, str | dict | list)]


def check_text(value: str, path: Path, what: str) -> None:
    """Raise ApiError if a string holds half a surrogate pair."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        message = f"{what}holds half of a surrogate pair, which is not text; send whole characters"
        raise invalid(written(path) or None, message) from None


def written(path: Path) -> str:
    """Return a path as errors show it, such as messages[0].content."""
    names: list[str] = []
    while path:
        path, name = path
        names.append(f"[{name}]" if isinstance(name, int) else f".{name}")
    return "".join(reversed(names)).removeprefix(".")


def shown(value: Any) -> str:
    """Return a value for an error message: its JSON type, and itself if it is short and harmless."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.10g}" if isinstance(value, float) or abs(value) < 10**10 else "a number of many digits"
    if isinstance(value, str):
        return json.dumps(value[:40], ensure_ascii=False) + (".." if len(value) > 40 else "")
    return JSON_NAMES.get(type(value), "a value")


def text(value: Any, param: str) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise invalid(param, f"is {shown(value)}; use a string")
    return value


def objects(value: Any, param: str) -> dict[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise invalid(param, f"is {shown(value)}; use an object")
    return value


def items(value: Any, param: str) -> list[Any]:
    """Return a JSON list."""
    if not isinstance(value, list):
        raise invalid(param, f"is {shown(value)}; use a list")
    return value


def flag(value: Any, param: str, default: bool) -> bool:
    """Return a boolean; null is the default."""
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid(param, f"is {shown(value)}; use true or false")
    return value


def whole_number(value: Any, param: str, low: int, high: int | None = None) -> int | None:
    """Return a whole number of at least `low` and at most `high`; null stays None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(param, f"is {shown(value)}; use a whole number")
    if value < low or (high is not None and value > high):
        raise invalid(param, f"is {shown(value)}; use {f'{low} to {high}' if high is not None else f'at least {low}'}")
    return value


def number(value: Any, param: str, low: float, high: float, *, above: bool = False) -> float | None:
    """Return a number from `low` (or above it) to `high`; null stays None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(param, f"is {shown(value)}; use a number")
    if not low <= value <= high or (above and value == low) or not math.isfinite(value):
        allowed = f"above {low:g} up to {high:g}" if above else f"{low:g} to {high:g}"
        raise invalid(param, f"is {shown(value)}; use {allowed}")
    return float(value)


def at_most(count: int, limit: int, param: str, what: str) -> None:
    """Raise ApiError if a request has more of something than this server takes."""
    if count > limit:
        raise invalid(param, f"has {count} {what}, at most {limit} are allowed", "limit_exceeded")
