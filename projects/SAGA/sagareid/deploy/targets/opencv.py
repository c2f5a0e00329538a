"""OpenCV's DNN module: ONNX, checked in OpenCV itself before it is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Target, register_target


@register_target
class OpenCV(Target):
    """`cv2.dnn.blobFromImages` resizes bilinearly, swaps BGR to RGB and leaves 0..255."""

    resize = "bilinear (OpenCV)"
    variants = ("float32",)

    def usage(self, path, metadata):
        height, width = metadata["input_size"]
        return (
            f'net = cv2.dnn.readNetFromONNX("{path}")\n'
            f"net.setInput(cv2.dnn.blobFromImages(crops, size=({width}, {height}), swapRB=True))  # BGR crops\n"
            "features = net.forward()"
        )

    def open(self, path, format):
        import cv2

        net = cv2.dnn.readNetFromONNX(path)

        def run(*inputs: Tensor) -> list[Tensor]:
            net.setInput(inputs[0].numpy(), "images")
            return [torch.from_numpy(net.forward())]

        return run
