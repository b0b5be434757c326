"""Errors of all kinds, answered in OpenAI's form."""

from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from qwen_vl.serving.protocol.errors import ApiError

INTERNAL = ApiError(500, "the server failed on this request; its log has the reason", kind="server_error")

ROUTES = "POST /v1/chat/completions, and GET /v1/models, /health, /metrics and /version"


def error_response(error: ApiError) -> JSONResponse:
    """Return the response of an error."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def answer_errors(app: FastAPI) -> None:
    """Let an app answer every error in OpenAI's form: ours, those of the router, and bugs, whose text stays inside."""

    async def of_ours(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error_response(error)

    async def of_the_router(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        response = error_response(from_router(error, method=request.method, path=request.url.path))
        response.headers.update(error.headers or {})
        return response

    async def of_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        return error_response(ApiError(422, f"{param}: {first['msg']}", param=param))

    async def of_a_bug(_: Request, error: Exception) -> JSONResponse:
        return error_response(INTERNAL)

    app.add_exception_handler(ApiError, of_ours)
    app.add_exception_handler(HTTPException, of_the_router)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(Exception, of_a_bug)


def from_router(error: HTTPException, *, method: str, path: str) -> ApiError:
    """Return what an error of the router says to a client."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        return ApiError(404, f"there is no route {path[:100]!r}; there are {ROUTES}", code="not_found")
    allowed = (error.headers or {}).get("Allow")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return ApiError(
            405, f"{path[:100]} does not take {method}; use {allowed or 'another'}", code="method_not_allowed"
        )
    return ApiError(error.status_code, str(error.detail))
