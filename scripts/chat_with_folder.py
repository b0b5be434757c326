"""Chat about an image with an exported folder, like a user who has transformers but not this repository.

python scripts/chat_with_folder.py FOLDER IMAGE BOXES.png QUESTION ..
"""

import logging
import sys

sys.modules["qwen_vl"] = None  # the folder has its own code, and an import of the package would be a mistake
# If torchao is installed, transformers imports it, and it warns about kernels for other machines.
for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

if not sys.stderr.isatty():
    disable_progress_bar()
folder, image, boxes, *questions = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
history = None
for question in questions:
    query = question if history else tokenizer.from_list_format([{"image": image}, {"text": question}])
    answer, history = model.chat(tokenizer, query, history=history)
    print(f"user: {question}\nassistant: {answer}")
    drawn = tokenizer.draw_bbox_on_latest_picture(answer, history)
    if drawn is not None:
        drawn.save(boxes)
        print(f"(boxes drawn in {boxes})")
