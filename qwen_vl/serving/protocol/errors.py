"""Errors of the OpenAI protocol."""

from typing import Any

INVALID_REQUEST = "invalid_request_error"


class ApiError(Exception):
    """An error that a client gets as JSON: HTTP status, message, kind ("type" on the wire), parameter and code.

    retry_after: seconds for the Retry-After header, or None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.retry_after = param, code, retry_after

    def body(self) -> dict[str, Any]:
        """Return the JSON body that the openai clients read."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """Return the error 400 for a parameter; its path begins the message."""
    return ApiError(400, f"{param}: {message}" if param else message, param=param, code=code)


def unsupported(param: str, advice: str) -> ApiError:
    """Return the error 400 for a parameter that would change the answer and is not obeyed."""
    return invalid(param, f"not supported by this server; {advice}", "unsupported_parameter")
