"""Small copies of images, decoded and encoded anew, within a number of bytes."""

import base64
import hashlib
import io
import logging
from dataclasses import dataclass

from PIL import Image

from gadc.images.decode import DecodePolicy, decode
from gadc.images.faults import ImageError
from gadc.images.source import ImageIndex

logger = logging.getLogger(__name__)

QUALITY = 80
CRISP_PX = 48
"""Smaller images are shown pixel by pixel: enlarging them smoothly would only blur them."""
MAX_ASPECT = 3.0
"""Longer images are cropped in the middle; scaled whole, nothing of them would be seen."""
POLICY = DecodePolicy()


@dataclass(frozen=True)
class Thumbnail:
    """A WebP image as a data URI can hold it.

    Attributes:
        base64: Its bytes.
        width: In pixels.
        height: In pixels.
    """

    base64: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The image as an address."""
        return f"data:image/webp;base64,{self.base64}"

    @property
    def is_crisp(self) -> bool:
        """Whether it is so small that its pixels should stay visible."""
        return max(self.width, self.height) <= CRISP_PX


class Thumbnails:
    """Thumbnails of the images of an index, by id, until the bytes are used up.

    Args:
        index: Where the images are.
        budget_bytes: Of all thumbnails, in base64.

    Attributes:
        faults: Images that could not be shown, and why.
    """

    def __init__(self, index: ImageIndex, *, budget_bytes: int) -> None:
        self._index = index
        self._places = {name: place for place, name in enumerate(index.ids)}
        self._made: dict[str, Thumbnail | None] = {}
        self.left_bytes = budget_bytes
        self.faults: dict[str, str] = {}
        self._left_out: set[str] = set()

    @property
    def n_left_out(self) -> int:
        """Number of images for which there was no room."""
        return len(self._left_out)

    def get(self, name: str, *, side_px: int, sha256: str | None = None) -> Thumbnail | None:
        """Return the thumbnail of an image, made now or before; None if there is none.

        Args:
            name: Its id.
            side_px: Of the longer side, if it is made now; an image is never enlarged.
            sha256: What its bytes must be; None takes them as they are.
        """
        if name not in self._made:
            if self.left_bytes <= 0:
                self._left_out.add(name)
                return None
            self._made[name] = self._make(name, side_px, sha256)
        return self._made[name]

    def made(self, name: str) -> Thumbnail | None:
        """Return the thumbnail of an image if it has been made."""
        return self._made.get(name)

    def _make(self, name: str, side_px: int, sha256: str | None) -> Thumbnail | None:
        if name not in self._places:
            self.faults[name] = f"not in {self._index.source}"
            return None
        try:
            content = self._index.read(self._places[name])
            if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
                raise ImageError("changed", "not the image that was selected: its bytes differ")
            made = encoded(decode(content, POLICY).image, side_px=side_px)
        except ImageError as error:
            self.faults[name] = error.message
            return None
        self.left_bytes -= len(made.base64)
        return made


def encoded(image: Image.Image, *, side_px: int) -> Thumbnail:
    """Return an RGB image of at most `side_px` a side; nothing but pixels is taken over."""
    image = _without_ends(image)
    scale = min(1.0, side_px / max(image.size))
    if scale < 1.0:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    is_small = max(image.size) <= CRISP_PX
    image.save(buffer, "WEBP", quality=QUALITY + 10 if is_small else QUALITY, method=4)
    return Thumbnail(base64.b64encode(buffer.getvalue()).decode("ascii"), *image.size)


def _without_ends(image: Image.Image) -> Image.Image:
    width, height = image.size
    if max(width, height) <= MAX_ASPECT * min(width, height):
        return image
    shown = (min(width, round(MAX_ASPECT * height)), min(height, round(MAX_ASPECT * width)))
    left, top = (width - shown[0]) // 2, (height - shown[1]) // 2
    return image.crop((left, top, left + shown[0], top + shown[1]))
