"""Benchmarks of chat checkpoints, asked in chat format: MME and TouchStone."""

from qwen_vl.evaluation import submissions
from qwen_vl.evaluation.metrics.mme import MME
from qwen_vl.evaluation.metrics.touchstone import TOUCHSTONE
from qwen_vl.evaluation.readers import hugging_face, mme_folder, tsv
from qwen_vl.evaluation.records import Decoding, Record

from .benchmark import Benchmark, DataFile
from .files import hub, table

# As chat answers: it ends at <|im_end|>, may be empty, and keeps its boxes.
CHAT = Decoding(max_new_tokens=512, min_new_tokens=0, end="im_end", keep_boxes=True)
MME_BY_SUBTASK = {
    **{"cognition": 360.71, "existence": 158.33, "count": 150.0, "position": 128.33, "color": 170.0},
    **{"posters": 178.57, "celebrity": 120.59, "scene": 152.25, "landmark": 164.0, "artwork": 125.5, "OCR": 140.0},
    **{"commonsense_reasoning": 130.71, "numerical_calculation": 40.0, "text_translation": 147.5},
    "code_reasoning": 42.5,
}
TOUCHSTONE_PUBLISHED = {
    "en": {"Qwen-VL-Chat": 645.2, "Qwen-VL-Chat (later weights)": 711.6, "Qwen-VL-Chat-Int4": 651.4},
    "zh": {"Qwen-VL-Chat": 401.2, "Qwen-VL-Chat (later weights)": 481.7, "Qwen-VL-Chat-Int4": 386.6},
}
LANGUAGES = {"en": "English", "zh": "Chinese"}


def image_of(record: Record) -> str:
    """Return what both questions about an image share."""
    return record.cluster


CHATS = (
    Benchmark(
        name="mme",
        title="MME",
        files={
            "records": DataFile(
                "data/mme/MME_Benchmark_release_version",
                "unpack it there, see https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models",
            )
        },
        reader=mme_folder.read,
        template="mme",
        decoding=CHAT,
        metric=MME,
        style="chat",
        size=2374,
        published={"Qwen-VL-Chat": 1487.58},
        published_figures={name: {"Qwen-VL-Chat": value} for name, value in MME_BY_SUBTASK.items()},
        submission=submissions.mme,
        layouts=(table("MME"), hub("MME", hugging_face.mme)),
        group_of=image_of,
    ),
    *(
        Benchmark(
            name=f"touchstone_{language}",
            title=f"TouchStone ({name})",
            files={
                "records": DataFile(
                    f"data/touchstone/touchstone_20230831{'' if language == 'en' else '_zh'}.tsv",
                    "download it from https://github.com/OFA-Sys/TouchStone"
                    + ("" if language == "en" else "; the Chinese one must be given, with the same columns"),
                )
            },
            reader=tsv.touchstone,
            template="chat",
            decoding=CHAT,
            metric=TOUCHSTONE,
            style="chat",
            size=908,
            published=TOUCHSTONE_PUBLISHED[language],
            submission=submissions.touchstone,
        )
        for language, name in LANGUAGES.items()
    ),
)
