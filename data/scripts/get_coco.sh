#!/usr/bin/env bash
# COCO is downloaded by the checker of data sets; docs/coming-from-yolov5.md has the other old names.
echo "get_coco.sh: run \`python check.py --data coco.yaml --download\`; see docs/coming-from-yolov5.md" >&2
exit 2
