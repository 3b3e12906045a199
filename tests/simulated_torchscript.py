"""Run a TorchScript file on the simulated GPU and save its outputs; started by test_gpu_programs.py.

python tests/simulated_gpu.py tests/simulated_torchscript.py FILE IMAGES OUTPUTS
"""

import sys

import torch

from utils.backends.open_weights import open_weights


def main() -> None:
    """Write the decoded outputs of FILE for the images in IMAGES to OUTPUTS."""
    file, images, outputs = sys.argv[1:]
    runner = open_weights([file], torch.device("cuda", 0)).runner
    decoded = runner.run(torch.load(images, weights_only=True)).decoded
    found = {f"{head}/{key}": tensor.cpu() for head, tensors in decoded.items() for key, tensor in tensors.items()}
    torch.save(found, outputs)


if __name__ == "__main__":
    main()
