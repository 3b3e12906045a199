"""Class names of the Cityscapes benchmark, which BDD100K shares.

In `core` because both the data configuration and the semantic layouts need them.
"""

NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
