"""Every animal of the zoo gets exactly its code and flags, every mutant some code or pixels."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from bad_bytes import good_files
from badzoo import Animal, zoo
from gadc.images.decode import DecodedImage, DecodePolicy, FaultCode, ImageError, decode

ANIMALS = zoo()
WHOLE = good_files()
MAX_ZOO_GROWTH_MB = 700
"""Above what the interpreter and its libraries take; the promise is 1 GB in all."""


def decode_or_fault(content: bytes, policy: DecodePolicy) -> DecodedImage | ImageError:
    try:
        return decode(content, policy)
    except ImageError as error:
        return error


def test_zoo_is_large_and_covers_every_code_of_decode() -> None:
    bad = [animal for animal in ANIMALS if animal.code is not None]
    elsewhere = {"changed", "io_error", "missing_label", "unsafe_member"}
    assert len(bad) >= 120
    assert len({animal.name for animal in ANIMALS}) == len(ANIMALS)
    assert {animal.code for animal in bad} == set(get_args(FaultCode)) - elsewhere


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
@pytest.mark.parametrize("animal", ANIMALS, ids=lambda animal: animal.name)
def test_animal_gets_its_exact_code_and_flags(animal: Animal) -> None:
    result = decode_or_fault(animal.content, animal.policy)
    if isinstance(result, ImageError):
        assert (result.code, animal.flags) == (animal.code, ())
        assert result.message
    else:
        assert (None, result.flags) == (animal.code, animal.flags)
        assert type(result.image) is Image.Image
        assert result.image.mode == "RGB"
        assert result.image.info == {}


def test_large_images_are_refused_without_pillows_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for animal in ANIMALS:
            if animal.code == "too_large":
                assert isinstance(decode_or_fault(animal.content, animal.policy), ImageError)


def test_decoding_leaves_the_state_of_the_process_alone() -> None:
    def state() -> tuple[object, ...]:
        return (
            Image.MAX_IMAGE_PIXELS,
            ImageFile.LOAD_TRUNCATED_IMAGES,
            Image.WARN_POSSIBLE_FORMATS,
            list(warnings.filters),
        )

    before = state()
    for animal in ANIMALS[::5]:
        decode_or_fault(animal.content, animal.policy)
    assert state() == before


def test_zoo_stays_below_a_gigabyte() -> None:
    script = (
        "import resource, badzoo\n"
        "from gadc.images.decode import ImageError, decode\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "animals = badzoo.zoo(); before = peak()\n"
        "for animal in animals:\n"
        "    try: decode(animal.content, animal.policy)\n"
        "    except ImageError: pass\n"
        "print((peak() - before) // 1024)\n"
    )
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=Path(__file__).parent,
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(output.stdout) < MAX_ZOO_GROWTH_MB


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_every_prefix_of_a_file_is_truncated_or_no_image(name: str) -> None:
    content = WHOLE[name]
    longest_signature = 18
    # Every byte where structures are dense, every 17th inside the data, a TIFF's padding spared.
    cuts = [*range(0, min(400, len(content) - 4)), *range(400, len(content) - 4, 17)]
    for cut in cuts:
        result = decode_or_fault(content[:cut], DecodePolicy())
        assert isinstance(result, ImageError), cut
        if cut > longest_signature:
            assert result.code == "truncated", cut
        else:
            assert result.code in ("truncated", "not_an_image"), cut


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "delete", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=5,
)


def mutate(content: bytes, mutations: list[tuple[str, float, int]]) -> bytes:
    mutant = bytearray(content)
    for how, where, amount in mutations:
        position = int(where * len(mutant))
        if how == "flip":
            mutant[position] ^= amount
        elif how == "delete":
            del mutant[position : position + amount % 40]
        else:
            mutant[position:position] = mutant[position : position + amount % 40]
        mutant = mutant or bytearray(b"\0")
    return bytes(mutant)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(name=st.sampled_from(sorted(WHOLE)), mutations=MUTATIONS)
def test_mutant_decodes_or_gets_a_code(name: str, mutations: list[tuple[str, float, int]]) -> None:
    # A small limit, so that a mutated size is not a gigabyte of canvas.
    policy = DecodePolicy(max_pixels=1_000_000)
    result = decode_or_fault(mutate(WHOLE[name], mutations), policy)
    if isinstance(result, ImageError):
        assert result.code in get_args(FaultCode)
    else:
        assert result.image.mode == "RGB"
