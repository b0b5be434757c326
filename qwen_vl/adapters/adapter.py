"""An adapter folder as a value: its settings, the base that it was trained on, its tokenizer. See `Adapter`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from peft import PeftConfig
from safetensors import SafetensorError, safe_open

from qwen_vl.checkpoint import files, loading
from qwen_vl.checkpoint.files import ADAPTER_BASE, ADAPTER_CONFIG, is_adapter
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.hubs.names import parse
from qwen_vl.model.tokenization_qwen import QWenTokenizer

WEIGHTS_FILE = "adapter_model.safetensors"
OF_BASE_WEIGHTS = ("pissa", "olora")  # initializations that use and change the float weights of the base
KEEP_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # initializations that leave the base unchanged


class Base(TypedDict, total=False):
    """The content of base.json: the weights that an adapter was trained on."""

    name: str  # folder or hub name
    fingerprint: str  # `loading.fingerprint` of the weights
    quantization: str | None  # how they are stored, or were quantized while loading; absent in older folders


@dataclass(frozen=True)
class Adapter:
    """An opened adapter folder. `attach` and `on_disk` put it on a model; `convert` makes it plain."""

    folder: Path
    config: PeftConfig
    base: Base | None  # None for an adapter that another program made

    @classmethod
    def open(cls, folder: "str | Path | Adapter") -> "Adapter":
        """Open a folder or a hub name; an opened adapter is returned as it is. The weights are not read.

        Raise FileNotFoundError if the folder holds no adapter, ValueError if its settings or base.json are damaged.
        """
        if isinstance(folder, Adapter):
            return folder
        if not os.path.isdir(folder) and parse(folder):
            folder = downloaded(str(folder))
        if not is_adapter(folder):
            raise FileNotFoundError(f"{folder}: no {ADAPTER_CONFIG} there; {_hint(Path(folder))}")
        files.read_json(folder, ADAPTER_CONFIG)  # a damaged one gets a clear error here
        base = cast("Base | None", files.read_json(folder, ADAPTER_BASE))  # written by our trainer alone
        try:
            config = PeftConfig.from_pretrained(str(folder))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder}: {ADAPTER_CONFIG} describes no adapter ({error}); get the folder again"
            ) from error
        return cls(Path(folder), config, base)

    def misfit(self, error: Exception) -> ValueError:
        """Return the error of weights that could not be put on a model, in one line of the first problem."""
        lines = [line.strip() for line in str(error).splitlines() if not line.startswith("Error(s) in loading")]
        problem = next((line for line in lines if line), type(error).__name__).removesuffix(".")
        return ValueError(
            f"{self.folder}: the adapter is damaged or does not fit the model: {problem}; "
            "give the base that it was trained on, or get the folder again"
        )

    @property
    def start(self) -> object:
        """Return PEFT's init_lora_weights: how the adapter was initialized."""
        return getattr(self.config, "init_lora_weights", None)  # only LoRA's settings have it

    @property
    def quantization(self) -> str | None:
        """Return how the base was quantized while the adapter trained, or None."""
        return (self.base or {}).get("quantization")

    def find_base(self, base: str | Path | None = None, *, trust: bool = False) -> ModelFolder:
        """Return the opened base, after comparing its weights with the recorded fingerprint.

        base: where it is now, if it has moved. trust: skip the comparison.
        Raise FileNotFoundError if the base is gone, ValueError if it is, or may be, the wrong one.
        """
        name = base or (self.base or {}).get("name") or self.config.base_model_name_or_path
        if trust:
            return ModelFolder.open(name)
        if self.base is None:
            raise ValueError(
                f"{self.folder}: has no {ADAPTER_BASE}, so nothing says that {name} is its base; "
                "pass --trust_base if you know that it is"
            )
        try:
            folder = ModelFolder.open(name)
            self.check_base(name, folder.fingerprint)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"the base of {self.folder}: {error}; if it has moved, give it with --base"
            ) from error
        return folder

    def check_base(self, name: str | Path, fingerprint: str) -> None:
        """Raise ValueError if the adapter was trained on other weights than those of `name`."""
        if self.base and self.base["fingerprint"] != fingerprint:
            raise ValueError(
                f"{name}: not the weights that {self.folder} was trained on (fingerprint {fingerprint[:12]}, "
                f"wanted {self.base['fingerprint'][:12]}); give the base {self.base['name']}"
            )

    def load_tokenizer(self, base: ModelFolder) -> QWenTokenizer:
        """Return the tokenizer of the folder, which has the tokens of the training, by default that of the base."""
        has_own = (self.folder / "qwen.tiktoken").is_file()
        return loading.load_tokenizer(self.folder, base.config) if has_own else base.tokenizer

    def check_plain(self) -> None:
        """Raise ValueError if the adapter needs a changed base: it is a checkpoint, not the result of a run."""
        if self.start in OF_BASE_WEIGHTS:
            raise ValueError(
                f"{self.folder}: a checkpoint of a run with --init_lora_weights {self.start}, which changed the base; "
                "take the adapter in the output folder of that run, or finish it with --resume_from_checkpoint"
            )

    def check_lora(self, verb: str = "merged here") -> None:
        """Raise ValueError for an adapter of another kind than LoRA, or one that needs a changed base."""
        if self.config.peft_type != "LORA":  # before fields that only LoRA has
            raise ValueError(
                f"{self.folder}: an adapter of type {self.config.peft_type}; only LoRA adapters are {verb}"
            )
        self.check_plain()

    def check_start(self) -> None:
        """Raise ValueError if the adapter cannot be added to the recorded base, which its initialization changed."""
        self.check_lora()
        if self.start not in KEEP_THE_BASE:
            raise ValueError(
                f"{self.folder}: began with init_lora_weights {self.start!r}, which changed its base; take "
                "the adapter in the output folder of its run, which goes with the unchanged base"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return {name: shape} of the stored tensors. Raise FileNotFoundError or ValueError if they cannot be read."""
        try:
            with safe_open(self.folder / WEIGHTS_FILE, framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.folder}: has no {WEIGHTS_FILE}; give a complete adapter folder") from error
        except SafetensorError as error:
            raise ValueError(f"{self.folder}: {WEIGHTS_FILE} is damaged ({error}); get it again") from error


def downloaded(name: str) -> str:
    """Return the local folder of an adapter on a hub, with all that an adapter can have."""
    of_tokenizer = ("qwen.tiktoken", "tokenizer_config.json", "chat_template.jinja")
    for file in (ADAPTER_CONFIG, ADAPTER_BASE, WEIGHTS_FILE, *of_tokenizer):
        files.find_file(name, file)
    return files.local_folder(name)


def _hint(folder: Path) -> str:
    """Return what to give instead of a folder that holds no adapter."""
    unfinished = sorted(folder.glob(f"checkpoint-*/{ADAPTER_CONFIG}"), key=os.path.getmtime)
    if unfinished:
        return f"its run has not finished; the newest adapter is {unfinished[-1].parent}"
    if (folder / "config.json").is_file():
        return (
            "it holds a model, not an adapter; finetune.py takes a model as --model_name_or_path, and qwen-vl export "
            "writes one"
        )
    return "give the --output_dir of a LoRA training"
