"""Several adapters on one model in memory, of which one or none is active."""

from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel

from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.model import QWenLMHeadModel

from .adapter import Adapter
from .build import load_adapters


class AdapterSwitch:
    """The adapters of a model by name. Without adapters, `use(None)` is all that it can do."""

    def __init__(
        self,
        model: QWenLMHeadModel,
        base: ModelFolder,
        adapters: Mapping[str, str | Path],
        *,
        trust_base: bool = False,
    ) -> None:
        """Attach the adapter folders to `model`, which was loaded from `base`; none is active afterwards.

        Raise FileNotFoundError or ValueError for a folder that holds no adapter of this base.
        """
        self.names = {name: f"adapter{number}" for number, name in enumerate(adapters)}  # PEFT allows no dots
        self.adapted: PeftModel | None = None
        self.active: str | None = None
        for name, folder in adapters.items():
            adapter = Adapter.open(folder)
            adapter.check_start()
            if not trust_base:
                adapter.find_base(base.path)
            self.adapted = load_adapters(self.adapted or model, adapter, name=self.names[name])
        if self.adapted is not None:
            self.adapted.eval()
            self.adapted.base_model.disable_adapter_layers()

    def use(self, name: str | None) -> None:
        """Make one adapter active, or with None the plain base. Raise KeyError for an unknown name."""
        if name == self.active or self.adapted is None:
            return
        if name is None:
            self.adapted.base_model.disable_adapter_layers()
        else:
            self.adapted.base_model.enable_adapter_layers()
            self.adapted.base_model.set_adapter(self.names[name], inference_mode=True)
        self.active = name
