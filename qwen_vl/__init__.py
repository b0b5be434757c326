"""Qwen-VL. What libraries say at import and helps nobody is switched off here, before any of them is imported."""

import logging

# Kernels that are not there and are not needed; a warning that torchao provokes in torch.
for _library in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_library).setLevel(logging.ERROR)
# deepspeed makes its logger at import and sets a level then, but a filter stays: "Setting accelerator to CPU".
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in str(record.msg))
