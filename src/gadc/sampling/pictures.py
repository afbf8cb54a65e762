"""Images as PNG files and as the array file of ADM's evaluator."""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gadc.storage import write_atomically

GRID_GAP_PX = 2
WHITE = 255
MEMBER_DATE = (1980, 1, 1, 0, 0, 0)
"""The same for all, so that equal images give equal files."""


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """Return an image [height, width, 3] as PNG."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="PNG")
    return content.getvalue()


def grid(images: NDArray[np.uint8], *, n_columns: int) -> NDArray[np.uint8]:
    """Return images [n, h, w, 3] side by side on white, row after row."""
    n, height, width, _ = images.shape
    n_rows = -(-n // n_columns)
    step_y, step_x = height + GRID_GAP_PX, width + GRID_GAP_PX
    sheet = np.full(
        (n_rows * step_y - GRID_GAP_PX, n_columns * step_x - GRID_GAP_PX, 3), WHITE, np.uint8
    )
    for number, image in enumerate(images):
        row, column = divmod(number, n_columns)
        top, left = row * step_y, column * step_x
        sheet[top : top + height, left : left + width] = image
    return sheet


def write_npz(
    path: Path,
    shape: tuple[int, ...],
    parts: Iterable[NDArray[np.uint8]],
    labels: NDArray[np.int64] | None,
) -> None:
    """Write `arr_0` (images) and, where there are classes, `arr_1` (labels), as ADM does.

    Args:
        path: The file.
        shape: Of all images, [n, height, width, 3].
        parts: The images in their order; never all in memory.
        labels: Int64 [n].
    """

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            member = zipfile.ZipInfo("arr_0.npy", MEMBER_DATE)
            with archive.open(member, "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:
                    file.write(np.ascontiguousarray(part).tobytes())
            if labels is not None:
                member = zipfile.ZipInfo("arr_1.npy", MEMBER_DATE)
                with archive.open(member, "w") as file:
                    np.lib.format.write_array(file, labels, allow_pickle=False)

    write_atomically(path, write)
