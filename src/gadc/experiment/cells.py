"""One cell of the table: a model trained on a subset, sampled, and judged.

Each stage has a folder named by the digest of all that it depends on, so that a stage is done once,
whoever asks for it: two methods that select the same images share a model, another judge judges the
same samples again.
"""

import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gadc
from gadc.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate
from gadc.evaluation.judged import Judged, of_index, open_judged
from gadc.experiment.classifier import ClassifierEncoder
from gadc.experiment.data import KEY_CHARACTERS, Images, find_images, labelled_part
from gadc.experiment.judging import Judge
from gadc.experiment.protocol import DataPart
from gadc.features.store import load_features
from gadc.images.part import part_of
from gadc.runtime import ProgressStyle, generator
from gadc.sampling.config import SampleConfig
from gadc.sampling.generate import IMAGES_FOLDER, sample
from gadc.sampling.generate import RECORD_NAME as SAMPLES_NAME
from gadc.storage import digest, file_sha256, write_json
from gadc.subset import Subset
from gadc.training.conditions import Conditions
from gadc.training.config import TrainConfig
from gadc.training.images import images_of_subset
from gadc.training.loop import train

logger = logging.getLogger(__name__)

RUNS_FOLDER, SAMPLES_FOLDER, SCORES_FOLDER = "runs", "samples", "scores"
DONE_NAME = "done.json"
"""Written last: a folder with it is finished."""
CELL_NAME = "cell.json"
SAMPLE_BATCH = 100
"""The same everywhere: a CPU's sums depend on it in their last digits."""
GENERATED = "generated"
AGREEMENT = "class-agreement"
MEMORISATION = {
    "near_copies": ("near-copies", "Near copies of training images"),
    "closer_to_training": ("closer-to-training", "Closer to training than to held-out images"),
}


@dataclass(frozen=True)
class Cell:
    """What one cell consists of; travels to another process.

    Attributes:
        title: For the log.
        out: The experiment's folder.
        data: Which images.
        subset: Folder of the subset.
        subset_key: Digest of its images and labels.
        conditions: File of texts and targets; None without.
        conditions_key: Its digest.
        train: How to train.
        sample: How to sample.
        judge: What judges.
        device: `auto` or `cpu`.
    """

    title: str
    out: Path
    data: DataPart
    subset: Path
    subset_key: str
    conditions: Path | None
    conditions_key: str | None
    train: TrainConfig
    sample: SampleConfig
    judge: Judge
    device: str

    @property
    def train_key(self) -> str:
        """Digest of all that the model depends on."""
        versions = [gadc.__version__, str(torch.__version__)]
        config = [self.train.identity, self.train.steps]
        return digest([versions, self.subset_key, self.conditions_key, config])

    @property
    def sample_key(self) -> str:
        """Digest of all that the samples depend on."""
        return digest([self.train_key, self.sample.model_dump(mode="json")])

    @property
    def score_key(self) -> str:
        """Digest of all that the numbers depend on."""
        return digest([self.sample_key, self.judge.key])

    @property
    def run_folder(self) -> Path:
        """Where the model is."""
        return self.out / RUNS_FOLDER / self.train_key[:KEY_CHARACTERS]

    @property
    def samples_folder(self) -> Path:
        """Where the samples are."""
        return self.out / SAMPLES_FOLDER / self.sample_key[:KEY_CHARACTERS]

    @property
    def scores_folder(self) -> Path:
        """Where the numbers are."""
        return self.out / SCORES_FOLDER / self.score_key[:KEY_CHARACTERS]

    def scores(self) -> list[dict[str, Any]] | None:
        """Return the numbers; None if they are not there, or not as they were written."""
        try:
            record = json.loads((self.scores_folder / CELL_NAME).read_bytes())
            claimed = record.pop("digest")
            if claimed != digest(record) or record["score_key"] != self.score_key:
                raise ValueError("not what was written")
            found: list[dict[str, Any]] = record["scores"]
            return found
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is corrupt (%s): judged again", self.scores_folder, error)
            return None


def run_cell(cell: Cell, show: ProgressStyle = "silent") -> None:
    """Train, sample and judge, as far as that is not done.

    Raises:
        GadcError: What the stages complain of; what is done is kept.
    """
    images = find_images(cell.data, cell.out)
    subset = Subset.load(cell.subset)
    seconds = {}
    began = time.monotonic()
    if not _is_sampled(cell.samples_folder):
        _train(cell, images, subset, show)
        seconds["train"] = round(time.monotonic() - began, 2)
        began = time.monotonic()
        sample(
            cell.run_folder,
            cell.sample,
            cell.samples_folder,
            batch_size=SAMPLE_BATCH,
            device=cell.device,
            show=show,
        )
        write_json(
            cell.samples_folder / DONE_NAME,
            {"key": cell.sample_key, "sha256": _samples_digest(cell.samples_folder)},
        )
        seconds["sample"] = round(time.monotonic() - began, 2)
        began = time.monotonic()
    scores = judge_images(
        cell.judge,
        images,
        cell.samples_folder,
        cell.scores_folder,
        subset=subset,
        device=cell.device,
        show=show,
    )
    seconds["judge"] = round(time.monotonic() - began, 2)
    record = {"score_key": cell.score_key, "scores": scores, "seconds": seconds}
    write_json(cell.scores_folder / CELL_NAME, {**record, "digest": digest(record)})


def _is_sampled(folder: Path) -> bool:
    """Tell whether all samples are there as they were made; changed ones are made again."""
    try:
        expected = json.loads((folder / DONE_NAME).read_bytes())["sha256"]
        if expected == _samples_digest(folder):
            return True
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        pass
    logger.warning("%s is not what was written: sampled again", folder)
    shutil.rmtree(folder)
    return False


def _samples_digest(folder: Path) -> str:
    """Return the digest of a record of samples and of every image."""
    images = sorted((folder / IMAGES_FOLDER).iterdir())
    return digest([[path.name, file_sha256(path)] for path in [folder / SAMPLES_NAME, *images]])


def _train(cell: Cell, images: Images, subset: Subset, show: ProgressStyle) -> None:
    conditions = None if cell.conditions is None else Conditions.load(cell.conditions)
    cell.run_folder.parent.mkdir(exist_ok=True)
    train(
        images_of_subset(subset, images.index),
        cell.train,
        cell.run_folder,
        conditions=conditions,
        device=cell.device,
        show=show,
    )


def judge_images(
    judge: Judge,
    images: Images,
    samples: Path,
    out: Path,
    *,
    subset: Subset | None,
    device: str,
    show: ProgressStyle,
) -> list[dict[str, Any]]:
    """Judge generated images by real ones.

    Args:
        judge: By what.
        images: Of the experiment.
        samples: Folder of `gadc sample`, or images.
        out: Folder for features and `evaluation.json`.
        subset: What the model was trained on, for the test of memorisation.
        device: Where to compute.
        show: See `gadc.runtime.progress`.

    Returns:
        A dictionary for each number: `name`, `title`, `better`, `value`, `note`.
    """
    held_out = judge.held_out(images)
    training = None
    if subset is not None and held_out is not None:
        training = of_index(part_of(images.index, subset.paths, subset.sha256), "training")
    found = _evaluated(
        judge,
        images,
        open_judged(samples, GENERATED),
        out,
        training=training,
        held_out=None if training is None else held_out,
        device=device,
        show=show,
    )
    scores = _numbers(found)
    if found.memorisation is not None:
        scores += _memorisation(found.result["memorisation"])
    if judge.classifier is not None:
        scores.append(_agreement(judge.classifier.load(), samples, out))
    return scores


def _evaluated(
    judge: Judge,
    images: Images,
    generated: Judged,
    out: Path,
    *,
    device: str,
    show: ProgressStyle,
    training: Judged | None = None,
    held_out: Judged | None = None,
) -> Evaluation:
    out.parent.mkdir(exist_ok=True)
    return evaluate(
        generated,
        judge.real(images),
        out,
        load=judge.load,
        training=training,
        held_out=held_out,
        settings=EvaluationSettings(
            size_px=judge.resolution_px,
            pairwise_images=judge.part.pairwise_images,
            decode_workers=1,
            device=device,
        ),
        show=show,
    )


def _numbers(found: Evaluation) -> list[dict[str, Any]]:
    names = ("name", "title", "better", "value", "note")
    return [{name: getattr(score, name) for name in names} for score in found.scores]


def _memorisation(found: dict[str, Any]) -> list[dict[str, Any]]:
    chance = {
        "near_copies": found["near_copies_by_chance"],
        "closer_to_training": found["closer_by_chance"],
    }
    return [
        {
            "name": name,
            "title": title,
            "better": "lower",
            "value": found[key],
            "note": f"{chance[key]:.3f} of the held-out images",
        }
        for key, (name, title) in MEMORISATION.items()
    ]


def _agreement(encoder: ClassifierEncoder, samples: Path, out: Path) -> dict[str, Any]:
    """Return in how many samples the classifier sees the class that was asked for."""
    record = json.loads((samples / SAMPLES_NAME).read_bytes())
    value = None
    if record["labels"] is not None:
        names = encoder.class_names or []
        asked = [record["class_names"][label] for label in record["labels"]]
        features = load_features(out / GENERATED)
        seen = encoder.classes_of(np.asarray(features.features))
        numbers = [int(Path(name).stem) for name in features.ids]
        value = float(
            np.mean([names[s] == asked[n] for s, n in zip(seen.tolist(), numbers, strict=True)])
        )
    return {
        "name": AGREEMENT,
        "title": "Classifier sees the class asked for",
        "better": "higher",
        "value": value,
        "note": "" if value is not None else "the model has no classes",
    }


def judge_real(
    judge: Judge, images: Images, out: Path, *, n_images: int, device: str, show: ProgressStyle
) -> list[dict[str, Any]]:
    """Judge real images of the pool as if they were generated: what no model will beat.

    Args:
        judge: By what.
        images: Of the experiment.
        out: Folder for features and numbers.
        n_images: As many as there are generated ones, or all.
        device: Where to compute.
        show: See `gadc.runtime.progress`.
    """
    drawn = generator(0, "reference").permutation(len(images.pool))[:n_images]
    part = of_index(labelled_part(images.pool, np.sort(drawn)), GENERATED)
    return _numbers(_evaluated(judge, images, part, out, device=device, show=show))
