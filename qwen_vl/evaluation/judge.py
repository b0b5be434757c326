"""A judge: a model behind the OpenAI protocol. Every reply is kept, so no question is asked twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_vl.evaluation import results
from qwen_vl.evaluation.keys import digest
from qwen_vl.evaluation.metrics.result import Messages
from qwen_vl.evaluation.openai_protocol import Endpoint, concurrently, first_choice
from qwen_vl.terminal import progress

CONCURRENT = 8


@dataclass(frozen=True)
class Judge:
    """A judge and the folder of its replies. It answers at temperature 0, up to the first newline."""

    endpoint: Endpoint
    model: str
    folder: Path
    concurrent: int = CONCURRENT

    def ask(self, conversations: Sequence[Messages]) -> list[str]:
        """Return the reply to each conversation: a stored one, else a new one, which is stored at once.

        Raise OSError if the judge refuses or cannot be reached. Replies until then stay stored.
        """
        files = [self.folder / f"{digest([self.model, messages])}.json" for messages in conversations]
        missing = {file: messages for file, messages in zip(files, conversations, strict=True) if not file.is_file()}
        self.folder.mkdir(parents=True, exist_ok=True)
        with progress(f"judge {self.model}", len(missing)) as advance:
            for index, reply in concurrently(self._ask, list(missing.values()), self.concurrent):
                file, messages = list(missing.items())[index]
                results.write_json(file, {"model": self.model, "messages": messages, "reply": reply})
                advance(1)
        return [str(results.read_json(file)["reply"]) for file in files]

    def _ask(self, messages: Messages) -> str:
        """Return what the judge says to one conversation."""
        body = {"model": self.model, "messages": messages, "temperature": 0, "stop": ["\n"]}
        reply = self.endpoint.post("chat/completions", body)
        content = first_choice(reply, self.endpoint.url).get("message", {}).get("content")
        return content if isinstance(content, str) else ""
