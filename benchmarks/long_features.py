"""How fast `fluxvit features` is on a long video, and whether its memory stays the same.

    python benchmarks/long_features.py fluxvit_nano_motionworld --budget 36

The video is made: 320x240 pixels, 25 frames a second, a key frame in ten seconds. It is embedded several
times.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from fluxvit.deploy.bench import conditions
from fluxvit.deploy.features import FeatureExtractor
from fluxvit.video.transforms import resize_and_crop, to_tensor
from fluxvit.video.writer import write_video
from steady_state import resident_mb


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--budget", type=int)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--window", type=float, default=2)
    parser.add_argument("--stride", type=float, default=0.5)
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    extract = FeatureExtractor(args.checkpoint, args.budget, window=args.window, stride=args.stride)
    print(", ".join(f"{name} {value}" for name, value in conditions(extract.device).items()))
    print(", ".join(f"{name} {value}" for name, value in extract.settings.items()))
    seconds = 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0).integers(0, 256, (1, 30, 40, 3), np.uint8)
        image = resize_and_crop(to_tensor(noise), (240, 320))[:, 0].permute(1, 2, 0).numpy()
        path = Path(folder) / "long.mp4"
        write_video(path, (np.roll(image, 2 * n, axis=1) for n in range(round(25 * seconds))), 25, gop=250)
        print(f"{seconds:g} s of video; {resident_mb():.0f} MB before the first pass")
        for number in range(1, args.passes + 1):
            start = time.perf_counter()
            rows = extract(path).rows
            spent = time.perf_counter() - start
            print(
                f"pass {number}: {len(rows)} windows in {spent:.1f} s, {seconds / spent:.0f} times "
                f"real time; {resident_mb():.0f} MB after it"
            )


if __name__ == "__main__":
    main()
