"""What a request may read, and how much of it: the images of `data:` URIs, of the web, and of one local folder."""

from .policy import REASONS, MediaError, MediaPolicy
from .reader import MediaReader

__all__ = ["REASONS", "MediaError", "MediaPolicy", "MediaReader"]
