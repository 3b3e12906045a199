"""The classes of the Cityscapes benchmark, which BDD100K shares (behaviour.md 12.6)."""

NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of each class, in `labelIds`
MAX_LABEL_ID = 33  # ids up to here that are no class count as unlabelled
