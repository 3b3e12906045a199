"""Serve checkpoints over HTTP, with a page to try them in the browser.

    python serve.py                                             (best.pt of the newest run)
    python serve.py --weights yolov5n.pt yolov5n-seg.pt --port 8000
    curl -F image=@bus.jpg 'http://127.0.0.1:5000/v1/predict?conf=0.4'

The routes are in tools/service/app.py and described at http://127.0.0.1:5000/docs.
"""

import argparse

from tools.service.program import serve_models
from tools.service.service_settings import ServiceSettings
from utils.core.cli import (
    Options,
    add_device,
    add_download,
    add_flag,
    new_parser,
    run_script,
    to_namespace,
    to_settings,
)

DEFAULTS = ServiceSettings()


def build_parser() -> argparse.ArgumentParser:
    """Create the parser of this program."""
    parser = new_parser(__doc__)
    group = parser.add_argument_group("model")
    text = "checkpoints or exported files (default: the newest best.pt)"
    group.add_argument("--weights", "--model", nargs="+", default=[], metavar="FILE", help=text)
    text = "default longer side of the network input in pixels (default: from the checkpoint)"
    group.add_argument("--imgsz", "--img", "--img-size", type=int, default=0, metavar="PX", help=text)
    add_download(group)
    _add_network(parser.add_argument_group("network"))
    _add_defaults(parser.add_argument_group("defaults of requests"))
    _add_batching(parser.add_argument_group("batching"))
    _add_limits(parser.add_argument_group("limits"))
    group = parser.add_argument_group("hardware and precision")
    add_device(group)
    add_flag(group, "--half", "compute in half precision")
    return parser


def _add_network(group: Options) -> None:
    add = group.add_argument
    add("--host", default=DEFAULTS.host, help="address to listen on; 0.0.0.0: all addresses")
    add("--port", type=int, default=DEFAULTS.port, metavar="N", help="port to listen on; 0: any free port")
    text = "key that clients must send as X-API-Key (default: $API_KEY, else none)"
    add("--api-key", default="", metavar="KEY", help=text)
    add_flag(group, "--allow-urls", "download images from public URLs that clients send")


def _add_defaults(group: Options) -> None:
    add = group.add_argument
    add("--conf-thres", type=float, default=DEFAULTS.conf_thres, metavar="P", help="confidence threshold")
    add("--iou-thres", type=float, default=DEFAULTS.iou_thres, metavar="IOU", help="IoU threshold of NMS")
    add("--max-det", type=int, default=DEFAULTS.max_det, metavar="N", help="maximum number of detections per image")


def _add_batching(group: Options) -> None:
    add = group.add_argument
    text = "maximum number of images per batch; GPUs benefit from more"
    add("--max-batch", type=int, default=DEFAULTS.max_batch, metavar="N", help=text)
    text = "time in milliseconds that an image waits for others to form a batch"
    add("--max-wait-ms", type=float, default=DEFAULTS.max_wait_ms, metavar="MS", help=text)


def _add_limits(group: Options) -> None:
    add = group.add_argument
    text = "maximum size of a request in MiB (else status 413)"
    add("--max-body-mb", type=float, default=DEFAULTS.max_body_mb, metavar="MB", help=text)
    text = "maximum number of pixels of an image (else status 422)"
    add("--max-pixels", type=int, default=DEFAULTS.max_pixels, metavar="N", help=text)
    text = "maximum number of images per request (else status 413)"
    add("--max-images", type=int, default=DEFAULTS.max_images, metavar="N", help=text)
    text = "maximum size that a request may choose in pixels (else status 422)"
    add("--max-imgsz", type=int, default=DEFAULTS.max_imgsz, metavar="PX", help=text)
    text = "maximum number of images in progress over all requests (else status 503)"
    add("--max-queue", type=int, default=DEFAULTS.max_queue, metavar="N", help=text)
    text = "seconds to receive a request (else status 408) and to complete it (else status 504)"
    add("--timeout", type=float, default=DEFAULTS.timeout, metavar="S", help=text)


def run(**overrides: object) -> None:
    """Serve from Python until stopped; names and defaults are those of the command line.

    Args:
        **overrides: Options by name, `port=8000`.
    """
    main(to_namespace(build_parser(), dict(overrides)))


def main(options: argparse.Namespace) -> None:
    """Serve with parsed options."""
    serve_models(to_settings(ServiceSettings, options))


if __name__ == "__main__":
    run_script(lambda: main(build_parser().parse_args()))
