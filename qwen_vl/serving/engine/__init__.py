"""Many requests at once on one model: continuous batching with images, adapters and long prompts."""

from .engine import Engine
from .loading import load
from .values import (
    EngineRequest,
    EngineSettings,
    EngineStats,
    EngineStopped,
    Event,
    ModelEntry,
    PromptTooLong,
    QueueFull,
    Sampling,
    UnknownModel,
)

__all__ = [
    "Engine",
    "EngineRequest",
    "EngineSettings",
    "EngineStats",
    "EngineStopped",
    "Event",
    "ModelEntry",
    "PromptTooLong",
    "QueueFull",
    "Sampling",
    "UnknownModel",
    "load",
]
