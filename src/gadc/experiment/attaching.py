"""Texts and visual targets of every subset: by the same encoders for all methods, or none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gadc.attach.attach import attach
from gadc.attach.text import load_text_encoder
from gadc.attach.visual import load_patch_encoder
from gadc.comparison.work import Unit
from gadc.experiment.protocol import Protocol
from gadc.experiment.selecting import Chosen
from gadc.export import class_captions
from gadc.images.source import ImageIndex
from gadc.runtime import ProgressStyle, pick_device, progress
from gadc.storage import file_sha256

LATENT_FACTOR = 8
"""Pixels below a latent of the VAEs of Stable Diffusion."""


@dataclass(frozen=True)
class ConditionsFile:
    """What a subset's images are trained with beside their class.

    Attributes:
        path: The file.
        key: Digest of what is in it.
    """

    path: Path
    key: str


def attach_conditions(
    protocol: Protocol,
    chosen: Mapping[Unit, Chosen],
    index: ImageIndex,
    *,
    device: str,
    show: ProgressStyle,
) -> dict[Unit, ConditionsFile]:
    """Give every subset its conditions; an empty dictionary if the protocol asks for none.

    Args:
        protocol: What is compared.
        chosen: The subsets; each file goes beside its own.
        index: The images.
        device: Where to compute.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: Encoders or a file that can't be used.
        MissingExtraError: transformers is not installed.
    """
    if protocol.conditions is not None:
        given = Path(protocol.conditions)
        file = ConditionsFile(given, file_sha256(given))
        return dict.fromkeys(chosen, file)
    part = protocol.attach
    if part is None:
        return {}
    where = pick_device(device)
    text = (
        None
        if part.text is None
        else load_text_encoder(part.text, device=where, n_tokens=part.text_tokens)
    )
    config = protocol.train_config(protocol.models[0], steps=1, seed=0)
    pixel_factor = 1 if config.space == "pixel" else LATENT_FACTOR
    visual = (
        None
        if part.visual is None
        else load_patch_encoder(
            part.visual,
            device=where,
            image_size_px=config.resolution_px,
            token_px=config.parts.patch * pixel_factor,
        )
    )
    found = {}
    with progress("attach", len(chosen), style=show) as bar:
        for unit, selection in chosen.items():
            subset = selection.subset
            attached = attach(
                subset,
                selection.folder,
                index=index,
                captions=class_captions(subset, template=part.caption),
                text=text,
                visual=visual,
                mirrored=config.flip,
            )
            found[unit] = ConditionsFile(attached.path, attached.conditions.fingerprint)
            bar.advance()
    return found
