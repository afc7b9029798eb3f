"""Draw what each budget keeps of some clips, as one picture.

    python examples/kept_tokens.py CLIP.mp4 ... --checkpoint runs/demo/best --out kept.jpg

Needs the extra `report` (Matplotlib writes the picture).
"""

from __future__ import annotations

import argparse

import matplotlib.image
import numpy as np

from fluxvit import Predictor
from fluxvit.deploy.explain import dim_dropped, kept_mask, shown_frames


def filmstrip(frames: np.ndarray, count: int, gap: int = 4) -> np.ndarray:
    """``count`` frames of uint8 ``[T, H, W, 3]`` side by side, with white gaps below and to the right."""
    chosen = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    framed = np.pad(chosen, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", default="kept.jpg")
    parser.add_argument("--frames", type=int, default=10, help="frames of each clip to draw")
    parser.add_argument("--height", type=int, default=80, help="of a frame, at least, in pixels")
    args = parser.parse_args()

    rows = []
    for clip in args.clips:
        # The largest budget's plan for all, so that the rows show the same frames.
        first = Predictor(args.checkpoint)
        config = first.model.config
        for budget in config.budgets:
            prediction = Predictor(args.checkpoint, budget, grid=first.plan.grid)(clip)
            frames = shown_frames(prediction, args.height)
            if budget == config.budgets[0]:
                rows.append(filmstrip(frames, args.frames))
            shape = prediction.plan.grid.token_shape(config.patch_size, config.tubelet_size)
            mask = kept_mask(prediction.kept, shape, config.tubelet_size)
            rows.append(filmstrip(dim_dropped(frames, mask), args.frames))
        rows[-1] = np.pad(rows[-1], ((0, 12), (0, 0), (0, 0)), constant_values=255)
    matplotlib.image.imsave(args.out, np.concatenate(rows), pil_kwargs={"quality": 88})
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
