"""Serve checkpoints over HTTP, with a page to try them on.

    python serve.py                                             (the newest run's best.pt)
    python serve.py --weights yolov5n.pt yolov5n-seg.pt --port 8000
    curl -F image=@bus.jpg 'http://127.0.0.1:5000/v1/predict?conf=0.4'

The routes are in tools/service/app.py; http://127.0.0.1:5000/docs describes them.
"""

import argparse

from tools.service.program import serve_models
from tools.service.service_settings import ServiceSettings
from utils.core.cli import add_device, add_download, explicit_options, new_parser, run_script, to_namespace


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    parser = new_parser(__doc__)
    add, usual = parser.add_argument, ServiceSettings()
    add("--weights", "--model", nargs="+", default=[], help="checkpoints or exported files; none: the newest best.pt")
    add("--host", default=usual.host, help="address to listen on; 0.0.0.0: all")
    add("--port", type=int, default=usual.port, help="port to listen on")
    add_device(parser)
    add("--half", action="store_true", help="compute in half precision")
    add(
        "--imgsz", "--img", "--img-size", type=int, default=0, help="longer side; 0: what the checkpoint was trained at"
    )
    add("--conf-thres", type=float, default=usual.conf_thres, help="least confidence, unless a request says otherwise")
    add("--iou-thres", type=float, default=usual.iou_thres, help="overlap above which the lesser box goes, likewise")
    add("--max-det", type=int, default=usual.max_det, help="most boxes per image, likewise")
    add(
        "--max-batch",
        type=int,
        default=usual.max_batch,
        help="images that go through the network together; a GPU takes more",
    )
    add("--max-wait-ms", type=float, default=usual.max_wait_ms, help="how long an image waits for others")
    add("--max-body-mb", type=float, default=usual.max_body_mb, help="larger requests are refused (413)")
    add("--max-pixels", type=int, default=usual.max_pixels, help="images of more pixels are refused (422)")
    add("--max-images", type=int, default=usual.max_images, help="most images in a request (413)")
    add("--max-imgsz", type=int, default=usual.max_imgsz, help="largest size that a request may ask for (422)")
    add("--max-queue", type=int, default=usual.max_queue, help="with more images in work, requests are refused (503)")
    add(
        "--timeout",
        type=float,
        default=usual.timeout,
        help="seconds to receive a request (408) or answer it (504)",
    )
    add("--level-memory", action="store_true", help="hold no memory that is not in use (slower; Linux)")
    add("--allow-urls", action="store_true", help="fetch images from public addresses that clients name")
    add("--api-key", default="", help="clients must send it as X-API-Key; empty: $API_KEY, else none")
    add_download(parser)
    return parser


def run(**overrides: object) -> None:
    """Serve from Python with the options' names and defaults, until stopped."""
    serve_models(to_namespace(build_parser(), dict(overrides)))


if __name__ == "__main__":
    run_script(lambda: run(**explicit_options(build_parser())))
