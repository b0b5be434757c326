"""The words of the page in English and Chinese."""

LANGUAGES = {"en": "English", "zh": "中文"}

WORDS = {
    "en": {
        "title": "Qwen-VL",
        "intro": "Attach images, ask about them, and see the boxes of the answer on the image.",
        "ask": "Ask something. The clip adds images.",
        "model": "Model",
        "language": "Language",
        "images": "Images",
        "board": "Draw a box on the image with the mouse or a finger to ask about that part.",
        "no_images": "The images of the conversation appear here.",
        "regenerate": "Regenerate",
        "clear": "Clear",
        "download": "Download as training record",
        "edit": "Edit",
        "edit_question": "Edit the question. It is asked again, and later turns are dropped.",
        "edit_answer": "Correct the answer. The training record then holds your text.",
        "save": "Save",
        "cancel": "Cancel",
        "examples": "Examples",
        "empty": "Your conversation starts here.",
        "thinking": "The model is reading ..",
        "error": "Error",
        "warning": "Answers of a model can be wrong. Check them before you rely on them.",
    },
    "zh": {
        "title": "Qwen-VL",
        "intro": "上传图片并提问，回答中的框会画在图片上。",
        "ask": "请输入问题，点回形针添加图片",
        "model": "模型",
        "language": "语言",
        "images": "图片",
        "board": "用鼠标或手指在图片上拖出一个框，就可以针对这个区域提问。",
        "no_images": "对话中的图片会显示在这里。",
        "regenerate": "重新生成",
        "clear": "清空",
        "download": "下载为训练数据",
        "edit": "编辑",
        "edit_question": "修改问题后会重新提问，之后的对话会被删除。",
        "edit_answer": "改正回答，下载的训练数据会使用您改正的内容。",
        "save": "保存",
        "cancel": "取消",
        "examples": "示例",
        "empty": "对话从这里开始。",
        "thinking": "模型正在阅读……",
        "error": "错误",
        "warning": "模型的回答可能有误，使用前请核对。",
    },
}

# (file in data/examples, or none; question in English; in Chinese)
EXAMPLES = (
    ("cat.jpg", "Describe this image in one sentence.", "用一句话描述这张图片。"),
    ("astronaut.jpg", "Box the helmet in the image.", "框出图中的头盔。"),
    ("coffee.jpg", "What is on the table?", "桌上有什么？"),
    ("notes.jpg", "Read the text in the image.", "读出图中的文字。"),
    ("", "What can you do with an image?", "你能用图片做什么？"),
)


def language_of(wanted: str | None, default: str) -> str:
    """Return the language for a wish such as `zh` or `zh-CN`, the default if there is no such language."""
    short = (wanted or "").lower()[:2]
    return short if short in WORDS else default
