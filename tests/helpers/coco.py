"""A file in the format of COCO."""


def coco(**changes):
    """Return the content of a file with two images, two categories and five annotations, with other keys changed."""
    return {
        "images": [{"id": 5, "file_name": "a.png", "width": 640, "height": 480}, {"id": 6, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "交通灯"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 3, "bbox": [10, 20, 100.5, 50], "iscrowd": 0},
            {"id": 2, "image_id": 5, "category_id": 1, "bbox": [0, 0, 640, 480]},
            {"id": 3, "image_id": 5, "category_id": 3, "bbox": [320, 240, 1, 1]},
            {"id": 4, "image_id": 6, "category_id": 1, "bbox": [25, 1000, 25, 1000.4]},
            {"id": 5, "image_id": 6, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    } | changes
