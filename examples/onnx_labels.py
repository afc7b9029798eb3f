"""Classify a video with an exported model, ONNX Runtime and PyAV; neither PyTorch nor fluxvit is needed.

    fluxvit export runs/demo/best exported --to onnx --budget 50
    python examples/onnx_labels.py exported CLIP.mp4

Needs: pip install onnxruntime av numpy pillow
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import av
import numpy as np
import onnxruntime
from PIL import Image


def sampled_frames(path: str, count: int) -> list[Image.Image]:
    """The frame in the middle of each of ``count`` equal segments of a video."""
    with av.open(path) as container:
        frames = [(frame.time, frame.to_image()) for frame in container.decode(video=0)]
    begins = np.array([time for time, _ in frames])
    length = begins[-1] + (begins[-1] - begins[0]) / max(1, len(frames) - 1)
    middles = (np.arange(count) + 0.5) * length / count
    return [frames[i][1] for i in np.searchsorted(begins, middles, side="right") - 1]


def resize_and_crop(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Resize until the size just fits into the image, and cut the middle out; uint8 ``[H, W, 3]``."""
    scale = max(height / image.height, width / image.width)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return pixels[top : top + height, left : left + width]


def main(folder: str, path: str) -> None:
    facts = json.loads((Path(folder) / "export.json").read_text(encoding="utf-8"))
    _, frames, height, width, _ = facts["input"]["shape"]
    clip = np.stack([resize_and_crop(image, height, width) for image in sampled_frames(path, frames)])
    session = onnxruntime.InferenceSession(Path(folder) / facts["file"])
    logits = session.run(["logits"], {"frames": clip[None]})[0][0]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    for i in np.argsort(-probabilities)[:5]:
        print(f"{100 * probabilities[i]:5.1f} %  {facts['labels'][i]}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
