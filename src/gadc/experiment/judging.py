"""What judges: an encoder and real images, made ready once for every cell of the table."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gadc.errors import InputError
from gadc.evaluation.encoding import Size, encode
from gadc.evaluation.evaluate import load_judge
from gadc.evaluation.judged import Judged, of_index, open_judged
from gadc.experiment import classifier
from gadc.experiment.classifier import ClassifierFiles, train_classifier
from gadc.experiment.data import KEY_CHARACTERS, Images
from gadc.experiment.protocol import CLASSIFIER, HELD_OUT, POOL, JudgePart
from gadc.features.encoders import Encoder
from gadc.features.store import load_features
from gadc.images.source import ImageIndex
from gadc.runtime import ProgressStyle
from gadc.storage import digest, file_sha256

REFERENCES_FOLDER, JUDGE_FOLDER = "references", "judge"
REAL, UNSEEN = "real", "held_out"
WEIGHTS_NAME = "classifier.safetensors"
BATCH_SIZE, DECODE_WORKERS = 64, 1


@dataclass(frozen=True)
class Judge:
    """An encoder and where the features of real images are; travels to other processes.

    Attributes:
        part: What the protocol says.
        classifier: The trained network, if that is the encoder.
        resolution_px: To which all images are brought.
        references: Folder of features by name: `real`, `held_out`.
        device: Where to compute.
        key: Digest of all that the numbers depend on beside the generated images.
    """

    part: JudgePart
    classifier: ClassifierFiles | None
    resolution_px: int
    references: dict[str, Path]
    device: str
    key: str = ""

    def load(self) -> Encoder:
        """Load the encoder."""
        if self.classifier is not None:
            return self.classifier.load()
        weights = None if self.part.weights is None else Path(self.part.weights)
        return load_judge(self.part.encoder, weights=weights, device=self.device)

    @property
    def split(self) -> str:
        """What tables call the real images."""
        real = self.part.real
        return real if real in (HELD_OUT, POOL) else os.path.basename(os.path.normpath(real))

    def real(self, images: Images) -> Judged:
        """Return the images, or statistics, that generated images are compared with."""
        if REAL in self.references:
            return self._with_features(REAL, _real_index(self.part, images), images)
        return open_judged(Path(self.part.real), REAL)

    def held_out(self, images: Images) -> Judged | None:
        """Return images that no model was trained on, with their features; None without."""
        if images.held_out is None:
            return None
        return self._with_features(UNSEEN, images.held_out, images)

    def _with_features(self, name: str, index: ImageIndex | None, images: Images) -> Judged:
        folder = self.references[name]
        source = images.source if index is None else index.source
        return Judged(name, source, index=index, features=load_features(folder), folder=folder)


def prepare_judge(
    part: JudgePart,
    images: Images,
    out: Path,
    *,
    resolution_px: int,
    device: str,
    show: ProgressStyle,
) -> Judge:
    """Train the classifier if that judges, and compute the features of real images.

    Raises:
        InputError: An encoder or a reference that can't be used.
        MissingExtraError: The encoder needs a library that is not installed.
    """
    trained = None
    if part.encoder == CLASSIFIER:
        trained = _trained(images.pool, out / JUDGE_FOLDER, resolution_px)
    judge = Judge(part, trained, resolution_px, {}, device)
    encoder = judge.load()
    size = Size(resolution_px, resolution_px, is_scaled=True)
    references: dict[str, Path] = {}
    contents: list[list[Any]] = []
    for found in _real_sets(part, images):
        if found.index is None or found.features is not None:
            contents.append([found.name, _file_digest(found.source)])
            continue
        key = digest([encoder.fingerprint(), size.as_json(), _identity(found.index)])
        folder = out / REFERENCES_FOLDER / key[:KEY_CHARACTERS]
        folder.mkdir(parents=True, exist_ok=True)
        encoded = encode(
            found,
            encoder,
            size,
            folder,
            batch_size=BATCH_SIZE,
            decode_workers=DECODE_WORKERS,
            show=show,
        )
        references[found.name] = folder
        features = encoded.features
        contents.append([found.name, None if features is None else features.sha256])
    key = digest([encoder.fingerprint(), size.as_json(), part.model_dump(mode="json"), contents])
    return dataclasses.replace(judge, references=references, key=key)


def describe(judge: Judge, images: Images) -> dict[str, Any]:
    """Return what the result says of the judge, with a classifier's accuracies."""
    found: dict[str, Any] = {
        "encoder": judge.part.encoder,
        "real": judge.split,
        "resolution_px": judge.resolution_px,
        "key": judge.key,
    }
    if judge.classifier is not None:
        encoder = judge.classifier.load()
        side = judge.resolution_px
        found["accuracy_pool"] = classifier.accuracy(encoder, images.pool, side)
        if images.held_out is not None:
            found["accuracy_held_out"] = classifier.accuracy(encoder, images.held_out, side)
    return found


def _trained(pool: ImageIndex, folder: Path, resolution_px: int) -> ClassifierFiles:
    settings = [
        *(classifier.WIDTHS, classifier.N_FEATURES, classifier.N_EPOCHS, classifier.BATCH_SIZE),
        *(classifier.LEARNING_RATE, classifier.SEED, resolution_px),
    ]
    key = digest([settings, _identity(pool)])
    place = folder / key[:KEY_CHARACTERS]
    place.mkdir(parents=True, exist_ok=True)
    files = ClassifierFiles(place / WEIGHTS_NAME, list(pool.class_names), resolution_px)
    if not files.is_whole():
        train_classifier(pool, files)
    return files


def _real_sets(part: JudgePart, images: Images) -> list[Judged]:
    index = _real_index(part, images)
    real = open_judged(Path(part.real), REAL) if index is None else of_index(index, REAL)
    if images.held_out is None:
        return [real]
    return [real, of_index(images.held_out, UNSEEN)]


def _real_index(part: JudgePart, images: Images) -> ImageIndex | None:
    """Return the real images, if they are the experiment's own."""
    own = {HELD_OUT: images.held_out, POOL: images.pool}
    return own.get(part.real)


def _identity(index: ImageIndex) -> list[Any]:
    """Return what tells one set of images from another; their bytes are verified by `extract`."""
    labels = None if index.labels is None else index.labels.tolist()
    return [os.path.abspath(index.source), index.ids, labels, index.class_names]


def _file_digest(path: Path) -> str:
    if path.is_dir():
        raise InputError(
            "bad_reference", f"{path}: give images, a file of features or a reference file"
        )
    return file_sha256(path)
