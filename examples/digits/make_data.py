"""Write scikit-learn's scanned handwritten digits as image files: `python -m examples.digits.make_data`.

The 1,797 images are kept as they are in the source: 8x8 pixels, white ink on black, 17 grey levels (0-16)
spread over 0-255. Their order is shuffled and the names are numbered in that order, so that neither a name nor
a position in the archive says what an image shows. The same seed gives the same bytes.
"""

import argparse
import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

HERE = Path(__file__).parent
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the number {}.",
    "a photo of the digit {}.",
    "an image of the number {}.",
    "a scan of the digit {}.",
    "the number {}",
)
SOURCE_LEVELS = 16
"""The source's largest ink value: a pixel counts the inked dots in a 4x4 square of the original scan."""
ARCHIVE_TIME = (2020, 1, 1, 0, 0, 0)
"""One fixed time for every archive member: zip stores times, and the bytes must not depend on the clock."""


def encode_png(levels_HW: np.ndarray) -> bytes:
    """Return one image of ink levels (0-16) as the bytes of an 8-bit greyscale PNG."""
    grey_HW = np.rint(levels_HW * (255 / SOURCE_LEVELS)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey_HW).save(buffer, format="PNG")
    return buffer.getvalue()


def write_archive(path: Path, members: list[tuple[str, bytes]]) -> None:
    """Write a zip whose bytes depend on the members alone: stored uncompressed, fixed times and modes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, date_time=ARCHIVE_TIME)
            info.create_system = 3  # Unix; otherwise the byte differs by the platform that wrote it
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)


def write_data(output: Path, *, seed: int) -> int:
    """Write archive, labels, class names and templates into `output`; return the number of images."""
    images_NHW, labels_N = load_digits(return_X_y=True)
    images_NHW = images_NHW.reshape(-1, 8, 8)
    order_N = np.random.default_rng(seed).permutation(len(labels_N))
    names = [f"digit_{position:04d}.png" for position in range(1, len(order_N) + 1)]

    output.mkdir(parents=True, exist_ok=True)
    write_archive(
        output / "digits.zip",
        [(name, encode_png(images_NHW[index])) for name, index in zip(names, order_N, strict=True)],
    )
    with (output / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("filename", "label"))
        rows.writerows((name, CLASS_NAMES[labels_N[index]]) for name, index in zip(names, order_N, strict=True))
    (output / "classes.json").write_text(json.dumps(CLASS_NAMES, indent=2) + "\n")
    (output / "templates.json").write_text(json.dumps(TEMPLATES, indent=2) + "\n")
    return len(names)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the scanned digits as image files.")
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to (default: beside this script)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffle (default: 0)")
    args = parser.parse_args()
    count = write_data(args.output, seed=args.seed)
    print(f"wrote {count} images to {args.output / 'digits.zip'}")


if __name__ == "__main__":
    main()
