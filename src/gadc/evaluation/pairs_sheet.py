"""Pictures of generated images beside the real ones nearest to them."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from gadc.errors import InputError
from gadc.evaluation.memorisation import NearCopy
from gadc.images.decode import decode
from gadc.images.faults import ImageError
from gadc.images.source import ImageIndex

CELL_PX = 128
GAP_PX = 6
TITLE_PX = 18
CAPTION_PX = 14
TITLES = ("generated", "nearest training", "nearest held-out")
INK, PAPER = (20, 20, 20), (255, 255, 255)
TRIPLES_PER_ROW = 3
TRIPLE_GAP_PX = 24


def pairs_sheet(
    copies: Sequence[NearCopy],
    *,
    generated: ImageIndex,
    training: ImageIndex,
    held_out: ImageIndex,
) -> bytes:
    """Draw one triple for each generated image: itself, its nearest training and held-out image.

    Args:
        copies: Rows of the three sources, worst first.
        generated: Where they are.
        training: Likewise.
        held_out: Likewise.

    Returns:
        A PNG file; under each real image the distance to it, and the ratio under the generated one.

    Raises:
        InputError: `source_changed`: an image can't be read any more.
    """
    n_rows = -(-len(copies) // TRIPLES_PER_ROW)
    n_columns = min(len(copies), TRIPLES_PER_ROW)
    triple_px = 3 * CELL_PX + 2 * GAP_PX
    row_px = CELL_PX + CAPTION_PX + GAP_PX
    width = n_columns * triple_px + (n_columns - 1) * TRIPLE_GAP_PX + 2 * GAP_PX
    sheet = Image.new("RGB", (width, TITLE_PX + n_rows * row_px + GAP_PX), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, copy in enumerate(copies):
        row, column = divmod(number, TRIPLES_PER_ROW)
        left = GAP_PX + column * (triple_px + TRIPLE_GAP_PX)
        top = TITLE_PX + row * row_px
        cells = (
            (generated, copy.generated_row, f"ratio {copy.ratio:.3f}"),
            (training, copy.training_row, f"{copy.training_distance:.4g}"),
            (held_out, copy.held_out_row, f"{copy.held_out_distance:.4g}"),
        )
        for place, (index, position, caption) in enumerate(cells):
            x = left + place * (CELL_PX + GAP_PX)
            if row == 0:
                draw.text((x, 3), TITLES[place], fill=INK, font=font)
            sheet.paste(_cell(index, position), (x, top))
            draw.text((x, top + CELL_PX + 1), caption, fill=INK, font=font)
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    return content.getvalue()


def _cell(index: ImageIndex, position: int) -> Image.Image:
    """Return an image fitted into a square; small ones show their pixels."""
    try:
        image = decode(index.read(position)).image
    except ImageError as error:
        raise InputError(
            "source_changed", f"{index.ids[position]}: {error.message}; restore it, and run again"
        ) from error
    is_small = max(image.size) < CELL_PX
    method = Image.Resampling.NEAREST if is_small else Image.Resampling.BICUBIC
    return ImageOps.pad(image, (CELL_PX, CELL_PX), method=method, color=PAPER)


def shown(copies: Sequence[NearCopy], names: dict[str, list[str]]) -> list[dict[str, object]]:
    """Return the pairs for a file, with the names of the images.

    Args:
        copies: The pairs.
        names: Names by row of `generated`, `training` and `held_out`.
    """
    return [
        {
            "generated": names["generated"][copy.generated_row],
            "training": names["training"][copy.training_row],
            "held_out": names["held_out"][copy.held_out_row],
            "training_distance": copy.training_distance,
            "held_out_distance": copy.held_out_distance,
            # Infinite where a held-out image is met exactly and no training image is.
            "ratio": copy.ratio if np.isfinite(copy.ratio) else None,
        }
        for copy in copies
    ]
