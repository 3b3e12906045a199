"""CPU inference kernels and exact rewrites of convolutions.

Training, GPUs and exported graphs use the plain operations; results differ from them by fp32 rounding, about 1e-5 of
the largest value.

- `conv_commute`: convolutions of enlarged maps, computed before enlarging.
- `winograd`: 3x3 convolutions with a quarter of the multiplications.
- `resample`: bilinear look-up between the pixels of a map, for test-time augmentation and sliding windows.

Together with the in-place activations and separable pools of `models/layers` and the class map of
`utils/ops/semantic_maps.py`, they reduce the time of a semantic head from 146 to 29 ms (psp), 160 to 34 (bise), 142 to
30 (lab) and 174 to 56 (base): yolov5s in v5.0's layout, one image of 512 x 1024, 19 classes, fp32, two CPU cores. The
measurement is `benchmarks/semantic_heads.py`, its report `benchmarks/results/semantic_heads.md`.
"""
