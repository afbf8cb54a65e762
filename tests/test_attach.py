import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from cli_runner import gadc_fixture  # noqa: F401 - a fixture
from features_helpers import write_images
from gadc.attach import parts
from gadc.attach.attach import TextPart, VisualPart, attach
from gadc.attach.research_files import read_targets, read_texts, write_research_files
from gadc.attach.text import DEFAULT_MODEL as DEFAULT_TEXT
from gadc.attach.text import DEFAULT_TEMPLATE, load_text_encoder
from gadc.attach.visual import DEFAULT_MODEL as DEFAULT_VISUAL
from gadc.attach.visual import load_patch_encoder
from gadc.cli import attach as attach_command
from gadc.errors import InputError, RunError
from gadc.images.decode import decode, resize_and_crop
from gadc.images.index import open_index
from gadc.training.conditions import CONDITIONS_NAME, Conditions
from subset_factory import folder_subset, without_digests
from tiny_models import DINO_WIDTH, T5_WIDTH, save_dinov2, save_t5

CPU = torch.device("cpu")
SIZE_PX, TOKEN_PX = 16, 4
N_TOKENS = (SIZE_PX // TOKEN_PX) ** 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, save in (("t5", save_t5), ("dino", save_dinov2)):
        (root / name).mkdir()
        save(root / name)
    return root


@pytest.fixture
def text(models):
    return load_text_encoder(str(models / "t5"), device=CPU, n_tokens=8)


@pytest.fixture
def visual(models):
    return load_patch_encoder(
        str(models / "dino"), device=CPU, image_size_px=SIZE_PX, token_px=TOKEN_PX
    )


@pytest.fixture
def selected(tmp_path):
    """Nine images of three classes, and their source."""
    data = write_images(tmp_path / "data", side_px=24)
    subset, index = folder_subset(data, n_per_class=3)
    return subset, index


def captions(subset):
    return [f"a photo of {name}" for name in subset.class_name]


def tokens_of(encoder, index, subset, row, *, flipped):
    """Return targets the slow way: one image, one orientation."""
    image = decode(index.read(index.ids.index(subset.paths[row]))).image
    square = resize_and_crop(image, resize_px=SIZE_PX, crop_px=SIZE_PX)
    if flipped:
        square = Image.fromarray(np.ascontiguousarray(np.asarray(square)[:, ::-1]))
    return encoder.encode(encoder.orientations(square, mirrored=False))[0][0]


def test_targets_belong_to_the_image_and_to_its_mirror_image(tmp_path, selected, visual):
    subset, index = selected
    found = attach(subset, tmp_path / "out", index=index, visual=visual, stored_type="float32")
    loaded = Conditions.load(tmp_path / "out" / CONDITIONS_NAME)
    assert loaded.ids == subset.paths
    assert loaded.visual.shape == (9, 2, N_TOKENS, DINO_WIDTH)
    assert found.n_images_computed == 9
    rows = np.array([4, 4, 0])
    shown = loaded.targets(rows, np.array([False, True, True]))
    for target, row, flipped in zip(shown, rows, [False, True, True], strict=True):
        expected = tokens_of(visual, index, subset, row, flipped=flipped)
        np.testing.assert_allclose(target.numpy(), expected, atol=1e-5)


def test_texts_of_a_class_are_stored_once(tmp_path, selected, text):
    subset, _ = selected
    attach(subset, tmp_path, captions=captions(subset), text=text, stored_type="float32")
    loaded = Conditions.load(tmp_path / CONDITIONS_NAME)
    assert loaded.text.shape == (3, 8, T5_WIDTH)
    assert loaded.visual is None
    rows = np.arange(9)
    found = loaded.texts(rows, np.zeros(9, bool))
    torch.testing.assert_close(found, text.encode(captions(subset)))
    assert not loaded.texts(rows, np.ones(9, bool)).any()


@pytest.mark.parametrize("stored_type", ["float16", "bfloat16"])
def test_stored_numbers_are_the_nearest_of_their_type(
    tmp_path, selected, text, visual, stored_type
):
    subset, index = selected
    options = {"index": index, "captions": captions(subset), "text": text, "visual": visual}
    attach(subset, tmp_path / "a", **options, stored_type="float32")
    attach(subset, tmp_path / "b", **options, stored_type=stored_type)
    exact = Conditions.load(tmp_path / "a" / CONDITIONS_NAME)
    found = Conditions.load(tmp_path / "b" / CONDITIONS_NAME)
    assert found.visual.dtype == found.text.dtype == getattr(torch, stored_type)
    torch.testing.assert_close(found.visual, exact.visual.to(found.visual.dtype))
    torch.testing.assert_close(found.text, exact.text.to(found.text.dtype))


def test_numbers_beyond_the_type_are_an_error(tmp_path, selected, visual, monkeypatch):
    subset, index = selected
    real = visual.encode
    monkeypatch.setattr(visual, "encode", lambda batch: (real(batch)[0] * 1e6, None))
    with pytest.raises(RunError) as caught:
        attach(subset, tmp_path / "out", index=index, visual=visual)
    assert caught.value.code == "features_not_finite"
    attach(subset, tmp_path / "out", index=index, visual=visual, stored_type="bfloat16")


def test_one_orientation_is_marked_as_such(tmp_path, selected, visual):
    subset, index = selected
    attach(subset, tmp_path / "out", index=index, visual=visual, mirrored=False)
    loaded = Conditions.load(tmp_path / "out" / CONDITIONS_NAME)
    assert loaded.visual.shape[1] == 1
    assert not loaded.has_both_orientations


def counting(encoder, monkeypatch):
    counts = []
    real = encoder.encode

    def encode(batch):
        counts.append(len(batch))
        return real(batch)

    monkeypatch.setattr(encoder, "encode", encode)
    return counts


def test_second_run_keeps_what_is_there(tmp_path, selected, text, visual, monkeypatch):
    subset, index = selected
    options = {"index": index, "captions": captions(subset), "text": text, "visual": visual}
    attach(subset, tmp_path / "out", **options)
    written = (tmp_path / "out" / CONDITIONS_NAME).read_bytes()
    counts = counting(visual, monkeypatch), counting(text, monkeypatch)
    again = attach(subset, tmp_path / "out", **options)
    assert counts == ([], [])
    assert (again.n_images_computed, again.n_texts_computed) == (0, 0)
    assert (tmp_path / "out" / CONDITIONS_NAME).read_bytes() == written
    other = [f"red {name}" for name in subset.class_name]
    changed = attach(subset, tmp_path / "out", **{**options, "captions": other})
    assert (changed.n_images_computed, changed.n_texts_computed) == (0, 3)
    loaded = Conditions.load(tmp_path / "out" / CONDITIONS_NAME)
    torch.testing.assert_close(loaded.visual, changed.conditions.visual)


def test_other_images_are_computed_anew(tmp_path, selected, visual):
    subset, index = selected
    attach(subset, tmp_path / "out", index=index, visual=visual)
    fewer = subset.first(2)
    found = attach(fewer, tmp_path / "out", index=index, visual=visual)
    assert found.n_images_computed == 6
    assert Conditions.load(tmp_path / "out" / CONDITIONS_NAME).ids == fewer.paths
    unknown = without_digests(fewer)
    attach(unknown, tmp_path / "out", index=index, visual=visual)
    again = attach(unknown, tmp_path / "out", index=index, visual=visual)
    assert again.n_images_computed == 6  # nobody knows whether they are the same


def assert_same(found, expected):
    assert (found.ids, found.provenance) == (expected.ids, expected.provenance)
    torch.testing.assert_close(found.visual, expected.visual, rtol=0, atol=0)


def test_killed_run_goes_on_with_its_parts(tmp_path, selected, visual, monkeypatch):
    subset, index = selected
    monkeypatch.setattr(parts, "PART_IMAGES", 4)
    expected = attach(subset, tmp_path / "straight", index=index, visual=visual)
    real, calls = visual.encode, []

    def fail_late(batch):
        calls.append(len(batch))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(batch)

    with monkeypatch.context() as patch:
        patch.setattr(visual, "encode", fail_late)
        with pytest.raises(KeyboardInterrupt):
            attach(subset, tmp_path / "out", index=index, visual=visual)
    found = attach(subset, tmp_path / "out", index=index, visual=visual)
    assert found.n_images_computed == 5
    assert_same(Conditions.load(found.path), expected.conditions)
    assert not (tmp_path / "out" / parts.PARTS_FOLDER).exists()


def test_damaged_part_is_computed_again(tmp_path, selected, visual, monkeypatch, caplog):
    subset, index = selected
    expected = attach(subset, tmp_path / "straight", index=index, visual=visual)
    monkeypatch.setattr("gadc.attach.attach.clear_parts", lambda _out: None)
    attach(subset, tmp_path / "out", index=index, visual=visual)
    (tmp_path / "out" / CONDITIONS_NAME).unlink()
    part = next((tmp_path / "out" / parts.PARTS_FOLDER).iterdir())
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = attach(subset, tmp_path / "out", index=index, visual=visual)
    assert found.n_images_computed == 9
    assert "computed again" in caplog.text
    assert_same(Conditions.load(found.path), expected.conditions)


def test_images_that_changed_or_are_gone_are_errors(tmp_path, selected, visual):
    subset, index = selected
    path = index.source / subset.paths[2]
    Image.new("RGB", (24, 24)).save(path)
    with pytest.raises(InputError, match=subset.paths[2]) as caught:
        attach(subset, tmp_path / "out", index=open_index(index.source), visual=visual)
    assert caught.value.code == "source_changed"
    path.unlink()
    with pytest.raises(InputError) as caught:
        attach(subset, tmp_path / "out", index=open_index(index.source), visual=visual)
    assert caught.value.code == "source_mismatch"
    with pytest.raises(InputError) as caught:
        attach(subset, tmp_path / "out", index=index, visual=visual)
    assert caught.value.code == "source_changed"


def test_full_disk_is_noticed_before_the_work(tmp_path, selected, visual, monkeypatch):
    subset, index = selected
    counts = counting(visual, monkeypatch)
    usage = dataclasses.make_dataclass("Usage", ["free"])(1000)
    monkeypatch.setattr(parts.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(RunError) as caught:
        attach(subset, tmp_path / "out", index=index, visual=visual)
    assert caught.value.code == "no_space"
    assert not counts


def test_what_is_asked_for_must_be_possible(tmp_path, selected, text, visual):
    subset, _ = selected
    for options, code in (
        ({}, "nothing_to_attach"),
        ({"text": text}, "length_mismatch"),
        ({"text": text, "captions": ["red"]}, "length_mismatch"),
        ({"text": text, "captions": ["red \udcff"] * 9}, "bad_captions"),
        ({"visual": visual}, "source_unknown"),
        ({"visual": VisualPart(torch.ones(2, 1, 4, 4), {})}, "length_mismatch"),
        ({"text": TextPart(torch.ones(1, 4, 4), torch.zeros(2).long(), {})}, "length_mismatch"),
        ({"text": text, "stored_type": "int8"}, "bad_choice"),
    ):
        with pytest.raises(InputError) as caught:
            attach(subset, tmp_path / "out", **options)
        assert caught.value.code == code


def attached(tmp_path, selected, text, visual):
    subset, index = selected
    return attach(
        subset,
        tmp_path / "out",
        index=index,
        captions=captions(subset),
        text=text,
        visual=visual,
        stored_type="bfloat16",
    ).conditions


def test_research_files_have_the_published_form(tmp_path, selected, text, visual):
    subset, _ = selected
    conditions = attached(tmp_path, selected, text, visual)
    paths = [f"root/{path}" for path in subset.paths]
    write_research_files(subset, conditions, tmp_path / "research", paths=paths)
    listed = json.loads((tmp_path / "research" / "visual" / "total_json.json").read_text())
    assert list(listed) == sorted(paths)
    held = torch.load(
        tmp_path / "research" / "visual" / listed[paths[4]], weights_only=True, map_location="cpu"
    )
    assert list(held) == ["gt_zs"]
    assert held["gt_zs"].dtype == torch.bfloat16
    torch.testing.assert_close(held["gt_zs"], conditions.visual[4, 0])
    folder = tmp_path / "research" / "caption_embeddings"
    embedding = torch.load(folder / "red.pt", weights_only=True)
    mask = torch.load(folder / "red_mask.pt", weights_only=True)
    assert (embedding.shape, embedding.dtype) == ((1, 8, T5_WIDTH), torch.bfloat16)
    assert mask.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]  # a photo of red, end


def test_research_files_come_back_as_they_went(tmp_path, selected, text, visual, caplog):
    subset, _ = selected
    conditions = attached(tmp_path, selected, text, visual)
    paths = [f"/data/train/{path}" for path in subset.paths]
    write_research_files(subset, conditions, tmp_path / "research", paths=paths)
    with caplog.at_level(logging.WARNING):
        targets = read_targets(subset, tmp_path / "research" / "visual" / "total_json.json")
    assert "mirrors at random" in caplog.text
    torch.testing.assert_close(targets.targets[:, 0], conditions.visual[:, 0])
    texts = read_texts(subset, tmp_path / "research" / "caption_embeddings")
    torch.testing.assert_close(texts.embeddings, conditions.text)
    assert texts.index.tolist() == conditions.text_index.tolist()
    attach(subset, tmp_path / "again", text=texts, visual=targets)
    loaded = Conditions.load(tmp_path / "again" / CONDITIONS_NAME)
    assert not loaded.has_both_orientations


def test_research_text_is_masked_when_it_is_read(tmp_path, selected):
    # The research code stores what T5 gives for padding, too.
    subset, _ = selected
    for name in ("red", "green", "blue"):
        torch.save(torch.ones(1, 4, 3, dtype=torch.bfloat16), tmp_path / f"{name}.pt")
        torch.save(torch.tensor([[1, 1, 0, 0]]), tmp_path / f"{name}_mask.pt")
    found = read_texts(subset, tmp_path).embeddings
    assert found[:, :2].eq(1).all()
    assert not found[:, 2:].any()


class _Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_research_files_with_code_are_refused_and_not_run(tmp_path, selected):
    subset, _ = selected
    torch.save({"gt_zs": _Canary(tmp_path / "ran")}, tmp_path / "s.pt")
    listed = dict.fromkeys(subset.paths, "s.pt")
    (tmp_path / "total_json.json").write_text(json.dumps(listed))
    with pytest.raises(InputError) as caught:
        read_targets(subset, tmp_path / "total_json.json")
    assert caught.value.code == "pickle_refused"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "held",
    [
        torch.ones(4, 3),
        {"gt_zs": torch.ones(4)},
        {"gt_zs": torch.ones(4, 3).long()},
        {"gt_zs": torch.full((4, 3), torch.nan)},
        {"gt_zs": torch.ones(4, 3).to_sparse()},
        {"gt_zs": torch.ones(4, 3, device="meta")},
        {"other": torch.ones(4, 3)},
    ],
)
def test_research_targets_of_another_form_are_refused(tmp_path, selected, held):
    subset, _ = selected
    torch.save(held, tmp_path / "s.pt")
    listed = dict.fromkeys(subset.paths, "s.pt")
    (tmp_path / "total_json.json").write_text(json.dumps(listed))
    with pytest.raises(InputError) as caught:
        read_targets(subset, tmp_path / "total_json.json")
    assert caught.value.code == "bad_research_file"


@pytest.mark.parametrize("content", ["{}", "[1]", "no json", '{"a": 1}', '{"blue/000.png": "x"}'])
def test_research_lists_that_do_not_fit_are_refused(tmp_path, selected, content):
    subset, _ = selected
    (tmp_path / "total_json.json").write_text(content)
    with pytest.raises(InputError) as caught:
        read_targets(subset, tmp_path / "total_json.json")
    assert caught.value.code == "bad_research_file"


def test_research_form_has_one_text_a_class(tmp_path, selected, text):
    subset, _ = selected
    given = [*captions(subset)[:-1], "a photo"]
    conditions = attach(subset, tmp_path / "out", captions=given, text=text).conditions
    with pytest.raises(InputError) as caught:
        write_research_files(subset, conditions, tmp_path / "research", paths=subset.paths)
    assert caught.value.code == "export_cannot_hold"


def test_command_names_the_defaults_of_the_library():
    assert attach_command.DEFAULT_TEXT == DEFAULT_TEXT
    assert attach_command.DEFAULT_VISUAL == DEFAULT_VISUAL
    assert attach_command.DEFAULT_TEMPLATE == DEFAULT_TEMPLATE


@pytest.fixture
def command(tmp_path, selected, models):
    subset, index = selected
    folder = tmp_path / "selected"
    folder.mkdir()
    subset.save(folder)
    return [
        "attach", folder, "--text", models / "t5", "--visual", models / "dino", "--source",
        index.source, "--image-size", SIZE_PX, "--token-px", TOKEN_PX,
    ]  # fmt: skip


def test_command_attaches_beside_the_subset(gadc, command, tmp_path, selected):
    subset, index = selected
    done = gadc(*command, "--json")
    assert done.code == 0
    assert done.json["visual"] == [9, 2, N_TOKENS, DINO_WIDTH]
    assert done.json["text"] == [3, 16, T5_WIDTH]
    conditions = Conditions.load(tmp_path / "selected" / CONDITIONS_NAME)
    assert conditions.provenance["visual"]["encoder"]["image_size_px"] == SIZE_PX
    research = gadc(*command, "--research", tmp_path / "research")
    assert "0 computed now" in research.stdout
    listed = json.loads((tmp_path / "research" / "visual" / "total_json.json").read_text())
    assert set(listed) == {str(index.source / path) for path in subset.paths}


def test_command_takes_captions_of_a_file(gadc, command, tmp_path, selected):
    subset, _ = selected
    lines = ["path,text", *(f"{path},red {n % 4}" for n, path in enumerate(subset.paths))]
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    done = gadc(*command, "--no-visual", "--caption-file", tmp_path / "captions.csv", "--json")
    assert (done.json["text"], done.json["visual"]) == ([4, 16, T5_WIDTH], None)


def test_command_takes_research_files(gadc, command, tmp_path):
    gadc(*command, "--research", tmp_path / "research")
    done = gadc(
        *command[:2], "--text-from", tmp_path / "research" / "caption_embeddings", "--visual-from",
        tmp_path / "research" / "visual" / "total_json.json", "-o", tmp_path / "again", "--json",
    )  # fmt: skip
    assert (done.code, done.json["visual"]) == (0, [9, 1, N_TOKENS, DINO_WIDTH])


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--no-text", "--no-visual"], "nothing_to_attach"),
        (["--image-size", "18"], "patch_grid"),
        (["--text", "/nowhere/t5"], "unreadable_encoder"),
        (["--visual", "/nowhere/dino"], "unreadable_encoder"),
        (["--caption-template", "a {colour}"], "bad_template"),
        (["--caption-template", "x", "--caption-file", "y.csv"], "option_conflict"),
        (["--no-text", "--caption-template", "x"], "option_unused"),
        (["--no-visual", "--visual-from", "x.json"], "option_conflict"),
        (["--path-prefix", "x"], "option_unused"),
        (["--text-tokens", "0"], "bad_argument"),
    ],
)
def test_command_says_what_cannot_be(gadc, command, options, code):
    failed = gadc(*command, *options)
    assert (failed.code, failed.error_code) == (2, code)
