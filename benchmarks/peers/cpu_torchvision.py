"""Lets torchvision be imported beside a CPU build of torch.

The package index has torchvision built against CUDA alone. Beside a CPU torch its own library
cannot be loaded, and importing it fails for want of two operators' names. mosaicml-streaming and
litdata import it for data sets and codecs that no benchmark or test of ours uses, so the names
suffice. Run before them: `import cpu_torchvision`.
"""

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

if not torch.cuda.is_available():
    torch.library.define("torchvision::nms", _BOXES)
    torch.library.define("torchvision::qnms", _BOXES)
