"""Chat about a picture with an exported folder, as a user does who has transformers but not this repository.

python scripts/chat_with_folder.py FOLDER PICTURE BOXES.png QUESTION ..
"""

import sys

sys.modules["qwen_vl"] = None  # the folder brings its own code: importing the package would fail here

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

folder, picture, boxes, *questions = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
history = None
for question in questions:
    query = question if history else tokenizer.from_list_format([{"image": picture}, {"text": question}])
    answer, history = model.chat(tokenizer, query, history=history)
    print(f"user: {question}\nassistant: {answer}")
    drawn = tokenizer.draw_bbox_on_latest_picture(answer, history)
    if drawn is not None:
        drawn.save(boxes)
        print(f"(boxes drawn in {boxes})")
