"""The dtypes that a model folder may be stored and computed in, by the names that users and safetensors give them."""

from typing import Literal

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHOICES = ("auto", *DTYPES)  # of an option whose default is the dtype of the files
STORED = {  # in the header of a safetensors file
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}

LoadedDtype = torch.dtype | Literal["auto"]  # as `loading.load_model` takes it


def dtype_or_auto(name: str) -> LoadedDtype:
    """Return the dtype of a name in CHOICES, "auto" as it is."""
    return "auto" if name == "auto" else DTYPES[name]
