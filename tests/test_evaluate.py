import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from cli_runner import gadc_fixture  # noqa: F401 - a fixture
from evaluation_helpers import (
    StubInception,
    install_stub,
    noise_images,
    stub_weights,
    write_pngs,
)
from features_helpers import ColourEncoder
from gadc.errors import InputError
from gadc.evaluation import inception
from gadc.evaluation.evaluate import EvaluationSettings, evaluate
from gadc.evaluation.frechet import frechet_distance
from gadc.evaluation.inception import InceptionEncoder
from gadc.evaluation.judged import of_index, open_judged
from gadc.evaluation.measures import MEASURES
from gadc.evaluation.pairs_sheet import CELL_PX, GAP_PX, TITLE_PX
from gadc.features.encoders import PixelEncoder, load_encoder
from gadc.features.store import load_features
from gadc.images.decode import decode
from gadc.images.index import open_index
from gadc.images.part import part_of
from real_data import REAL_DATA, needs_real_data
from subset_factory import folder_subset

N_REAL = 30


@pytest.fixture
def folders(tmp_path):
    """Real images, and generated ones of which half are real ones."""
    real, fresh = noise_images(N_REAL), noise_images(10, seed=9)
    return (
        write_pngs(tmp_path / "generated", np.concatenate([real[:10], fresh])),
        write_pngs(tmp_path / "real", real),
    )


def run(generated, real, out, encoder=None, **options):
    encoder = encoder or ColourEncoder()
    settings = EvaluationSettings(
        device="cpu", **{key: options.pop(key) for key in ("size_px", "seed") if key in options}
    )
    return evaluate(
        open_judged(generated, "generated"),
        open_judged(real, "real"),
        out,
        load=lambda: encoder,
        settings=settings,
        **options,
    )


def values(evaluation):
    return {score.name: score.value for score in evaluation.scores}


def rows_of(folder, encoder=None):
    encoder = encoder or ColourEncoder()
    index = open_index(folder, labels=False)
    images = [decode(index.read(row)).image for row in range(len(index))]
    return encoder.encode(np.stack([encoder.preprocess(image) for image in images]))[0]


def test_evaluation_numbers_are_the_measures_of_the_features(folders, tmp_path):
    found = values(run(*folders, tmp_path / "out"))
    generated, real = (rows_of(folder) for folder in folders)
    expected = frechet_distance(generated=generated, real=real).value
    assert found["frechet"] == pytest.approx(expected, rel=1e-6)
    for name in ("kid", "precision", "recall", "density", "coverage"):
        # Sums over pairs depend on the last bits of a batch's features.
        assert found[name] == pytest.approx(
            MEASURES[name].compute(generated, real), rel=1e-5, abs=1e-6
        )


def test_evaluation_of_equal_sets_is_perfect(folders, tmp_path):
    _, real = folders
    found = values(run(real, real, tmp_path / "out"))
    assert found["frechet"] == pytest.approx(0.0, abs=1e-6)
    assert [found[name] for name in ("precision", "recall", "coverage")] == [1.0, 1.0, 1.0]


def test_evaluation_keeps_generated_and_real_apart(tmp_path):
    real = noise_images(N_REAL)
    darkest = real[np.argsort(real.mean(axis=(1, 2, 3)))[:6]]
    narrow = write_pngs(tmp_path / "narrow", darkest)
    wide = write_pngs(tmp_path / "wide", real)
    found = values(run(narrow, wide, tmp_path / "a"))
    assert found["precision"] == 1.0
    assert found["recall"] < 1.0
    turned = values(run(wide, narrow, tmp_path / "b"))
    assert (turned["precision"], turned["recall"]) == (found["recall"], found["precision"])


def test_evaluation_of_an_array_file_is_that_of_the_folder(folders, tmp_path):
    generated, real = folders
    images = [np.asarray(Image.open(path)) for path in sorted(generated.iterdir())]
    np.savez(tmp_path / "samples.npz", np.stack(images))
    of_array = values(run(tmp_path / "samples.npz", real, tmp_path / "a"))
    assert of_array == values(run(generated, real, tmp_path / "b"))


def test_evaluation_finds_the_images_of_a_sampling_run(folders, tmp_path):
    generated, real = folders
    run_folder = tmp_path / "samples"
    write_pngs(run_folder / "images", [np.asarray(Image.open(p)) for p in generated.iterdir()])
    (run_folder / "samples.json").write_text("{}")
    write_pngs(run_folder / "previews", noise_images(3, seed=5))
    found = run(run_folder, real, tmp_path / "out")
    assert found.protocol["sets"]["generated"]["n_images"] == 20


def test_second_evaluation_computes_nothing(folders, tmp_path):
    first = run(*folders, tmp_path / "out")
    written = (tmp_path / "out" / "evaluation.json").read_bytes()
    encoder = ColourEncoder()
    second = run(*folders, tmp_path / "out", encoder)
    assert encoder.n_encoded == 0
    assert second.result == first.result
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == written


def test_features_of_a_reference_serve_the_next_evaluation(folders, tmp_path):
    generated, real = folders
    first = run(generated, real, tmp_path / "a")
    second = run(generated, tmp_path / "a" / "real", tmp_path / "b")
    assert values(second) == values(first)
    assert first.protocol["sets"]["real"]["source"] != second.protocol["sets"]["real"]["source"]
    assert first.result["protocol_sha256"] == second.result["protocol_sha256"]
    third = run(tmp_path / "a" / "generated", real, tmp_path / "c")
    assert values(third) == values(first)
    large = write_pngs(tmp_path / "large", noise_images(6, side_px=24))
    with pytest.raises(InputError) as caught:
        run(tmp_path / "a" / "generated", large, tmp_path / "d")
    assert caught.value.code == "image_sizes"


def test_features_of_other_weights_are_refused(folders, tmp_path):
    generated, real = folders
    run(generated, real, tmp_path / "a")
    with pytest.raises(InputError) as caught:
        run(generated, tmp_path / "a" / "real", tmp_path / "b", ColourEncoder(version=2))
    assert caught.value.code == "encoder_mismatch"


def test_features_of_other_image_sizes_are_refused(folders, tmp_path):
    generated, real = folders
    run(generated, real, tmp_path / "a", size_px=6)
    with pytest.raises(InputError) as caught:
        run(generated, tmp_path / "a" / "real", tmp_path / "b")
    assert caught.value.code == "encoder_mismatch"


def test_features_of_anybody_are_taken_and_noted(folders, tmp_path):
    generated, real = folders
    save_file({"features": rows_of(real)}, tmp_path / "real.safetensors")
    found = run(generated, tmp_path / "real.safetensors", tmp_path / "a")
    expected = values(run(generated, real, tmp_path / "b"))["frechet"]
    assert values(found)["frechet"] == pytest.approx(expected, rel=1e-6)
    assert found.protocol["encoder_not_known_of"] == ["real"]


def test_protocol_names_encoder_sizes_and_contents(folders, tmp_path):
    generated, real = folders
    protocol = run(generated, real, tmp_path / "a").protocol
    assert protocol["encoder"] == ColourEncoder().fingerprint()
    assert protocol["images"] == {"size_px": [12, 12], "resize": "none"}
    assert {name: each["n_images"] for name, each in protocol["sets"].items()} == {
        "generated": 20,
        "real": N_REAL,
    }
    write_pngs(real, noise_images(1, seed=77))
    other = run(generated, real, tmp_path / "b").protocol
    assert other["sets"]["generated"]["sha256"] == protocol["sets"]["generated"]["sha256"]
    assert other["sets"]["real"]["sha256"] != protocol["sets"]["real"]["sha256"]


def test_images_of_another_size_are_an_error_that_says_how(folders, tmp_path):
    generated, _ = folders
    large = write_pngs(tmp_path / "large", noise_images(6, side_px=24))
    with pytest.raises(InputError, match=r"24 x 24.*12 x 12.*size_px=12") as caught:
        run(generated, large, tmp_path / "a")
    assert caught.value.code == "image_sizes"
    found = run(generated, large, tmp_path / "b", size_px=12)
    assert found.protocol["images"]["size_px"] == [12, 12]


def test_a_broken_image_is_an_error(folders, tmp_path):
    generated, real = folders
    (generated / "000003.png").write_bytes(b"nothing")
    with pytest.raises(InputError) as caught:
        run(generated, real, tmp_path / "out")
    assert caught.value.code == "bad_image"


def test_too_few_images_give_a_value_with_a_mark_or_a_reason(tmp_path):
    generated = write_pngs(tmp_path / "generated", noise_images(3))
    real = write_pngs(tmp_path / "real", noise_images(3, seed=2))
    scores = run(generated, real, tmp_path / "out").result["scores"]
    assert scores["frechet"]["biased"] is True
    assert scores["frechet"]["value"] > 0.0
    assert scores["precision"]["value"] is None
    assert "needs 4 real" in scores["precision"]["note"]
    assert scores["kid"]["biased"] is False


def test_enough_images_have_no_mark(folders, tmp_path):
    scores = run(*folders, tmp_path / "out").result["scores"]  # 20 and 30 of 6 features
    assert scores["frechet"]["biased"] is False


def test_what_is_no_set_of_images_is_an_error(folders, tmp_path):
    moments = tmp_path / "moments.npz"
    np.savez(moments, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(InputError) as raised:
        run(moments, folders[1], tmp_path / "out")
    assert raised.value.code == "too_few_rows"
    np.savez(moments, mu=np.array(["a"]), sigma=np.eye(1))
    with pytest.raises(InputError) as raised:
        open_judged(moments, "real")
    assert raised.value.code == "not_numbers"


def test_one_image_is_an_error(folders, tmp_path):
    _, real = folders
    single = write_pngs(tmp_path / "single", noise_images(1))
    with pytest.raises(InputError) as caught:
        run(single, real, tmp_path / "out")
    assert caught.value.code == "too_few_rows"


def test_pairwise_images_limits_what_is_compared_by_the_seed(folders, tmp_path):
    def limited(out, n_most, seed=0):
        settings = EvaluationSettings(pairwise_images=n_most, seed=seed, device="cpu")
        found = evaluate(
            open_judged(folders[0], "generated"),
            open_judged(folders[1], "real"),
            tmp_path / out,
            load=ColourEncoder,
            settings=settings,
        )
        return found.result["scores"]

    few = limited("a", 8)
    assert few["recall"]["details"] == {"n_generated": 8, "n_real": 8}
    assert few["frechet"] == limited("a", None)["frechet"]
    assert few == limited("b", 8)
    assert few["kid"]["value"] != limited("b", 8, seed=1)["kid"]["value"]
    with pytest.raises(InputError):
        EvaluationSettings(pairwise_images=1)


def test_pixels_are_compared_on_the_axes_of_the_reference(folders, tmp_path):
    generated, real = folders
    encoder = PixelEncoder(side_px=4, n_components=3)
    found = values(run(generated, real, tmp_path / "a", encoder))
    raw = [rows_of(folder, encoder).astype(np.float64) / 255 for folder in folders]
    _, _, axes = np.linalg.svd(raw[1] - raw[1].mean(0), full_matrices=False)
    projected = [(rows - raw[1].mean(0)) @ axes[:3].T for rows in raw]
    expected = frechet_distance(generated=projected[0], real=projected[1]).value
    assert found["frechet"] == pytest.approx(expected, rel=1e-4)  # features are float32
    save_file({"features": np.ones((5, 3), np.float32)}, tmp_path / "f.safetensors")
    with pytest.raises(InputError) as caught:
        run(tmp_path / "f.safetensors", tmp_path / "a" / "real", tmp_path / "b", encoder)
    assert caught.value.code == "rows_missing"


def stub_encoder(seed=0):
    network = StubInception("inception", ["2048", "logits_unbiased"])
    network.load_state_dict(stub_weights(seed))
    return InceptionEncoder(network, version="0.0", device=torch.device("cpu"))


def test_inception_gives_the_published_numbers(folders, tmp_path):
    found = run(*folders, tmp_path / "out", stub_encoder())
    names = [score.name for score in found.scores]
    assert names[:3] == ["fid", "sfid", "inception-score"]
    generated, real = (
        load_features(tmp_path / "out" / name).features for name in ("generated", "real")
    )
    for name, columns in (("fid", inception.POOL), ("sfid", inception.SPATIAL)):
        expected = frechet_distance(generated=generated[:, columns], real=real[:, columns])
        assert values(found)[name] == pytest.approx(expected.value, rel=1e-9)
        assert found.result["scores"][name]["biased"] is True
    logits = torch.from_numpy(np.array(generated[:, inception.LOGITS])).double()
    p = logits.softmax(1)
    score = (p * (p / p.mean(0)).log()).sum(1).mean().exp()
    assert values(found)["inception-score"] == pytest.approx(float(score), rel=1e-6)


class SmallInception(ColourEncoder):
    """Rows as Inception's, of 6 pooled and 6 spatial features and 3 logits."""

    name = "inception"

    def encode(self, batch):
        features, heads = super().encode(batch)
        return np.concatenate([features, np.sqrt(features), np.log(heads)], axis=1), None


@pytest.fixture
def small_inception(monkeypatch):
    # Roots of covariances of 2048 features would take seconds.
    for name, columns in (("POOL", (0, 6)), ("SPATIAL", (6, 12)), ("LOGITS", (12, 15))):
        monkeypatch.setattr(inception, name, slice(*columns))
    return SmallInception()


def test_reference_statistics_are_those_of_their_images(folders, tmp_path, small_inception):
    generated, real = folders
    encoder = small_inception
    expected = values(run(generated, real, tmp_path / "a", encoder))
    rows = np.asarray(load_features(tmp_path / "a" / "real").features, np.float64)
    moments = {}
    for ending, columns in (("", inception.POOL), ("_s", inception.SPATIAL)):
        moments[f"mu{ending}"] = rows[:, columns].mean(0)
        moments[f"sigma{ending}"] = np.cov(rows[:, columns], rowvar=False)
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(real.iterdir())])
    np.savez(tmp_path / "ref.npz", arr_0=images[:20], **moments)
    found = run(generated, tmp_path / "ref.npz", tmp_path / "b", encoder)
    # The means and covariances of all thirty images, the neighbourhoods of the twenty there.
    for name in ("fid", "sfid"):
        assert values(found)[name] == pytest.approx(expected[name], rel=1e-6)
    scores = found.result["scores"]
    assert scores["fid"]["details"]["n_real"] is None
    assert scores["precision"]["details"]["n_real"] == 20
    assert found.protocol["sets"]["real"]["moments_sha256"]


def test_reference_of_statistics_alone_has_no_neighbourhoods(folders, tmp_path, small_inception):
    generated, _ = folders
    np.savez(tmp_path / "ref.npz", mu=np.zeros(6), sigma=np.eye(6))
    found = run(generated, tmp_path / "ref.npz", tmp_path / "a", small_inception)
    scores = found.result["scores"]
    assert scores["fid"]["value"] > 0.0
    assert scores["sfid"]["value"] is None
    assert scores["recall"]["value"] is None
    assert "statistics only" in scores["recall"]["note"]


def test_reference_statistics_need_inception(folders, tmp_path):
    generated, _ = folders
    np.savez(tmp_path / "ref.npz", mu=np.zeros(6), sigma=np.eye(6))
    with pytest.raises(InputError) as caught:
        run(generated, tmp_path / "ref.npz", tmp_path / "a")
    assert caught.value.code == "encoder_mismatch"
    np.savez(tmp_path / "half.npz", mu=np.zeros(6))
    with pytest.raises(InputError) as caught:
        run(generated, tmp_path / "half.npz", tmp_path / "a")
    assert caught.value.code == "bad_reference"


def remembered(tmp_path, **options):
    """Judge samples, half of which are training images, beside a pool that holds all of them."""
    pool = noise_images(40)
    everything = write_pngs(tmp_path / "pool", pool)
    generated = write_pngs(
        tmp_path / "generated", np.concatenate([pool[:5], noise_images(5, seed=8)])
    )
    index = open_index(everything)
    training = of_index(part_of(index, index.ids[:10], [None] * 10), "training")
    return run(
        generated,
        everything,
        tmp_path / "out",
        training=training,
        held_out=open_judged(everything, "held_out"),
        **options,
    )


def test_memorisation_finds_the_copies_and_leaves_training_images_out(tmp_path):
    found = remembered(tmp_path).result["memorisation"]
    assert found["near_copies"] >= 0.5
    assert found["near_copies_by_chance"] < 0.2
    assert (found["n_held_out"], found["n_held_out_left_out"]) == (30, 10)
    worst = found["worst"][:5]
    assert {pair["generated"] for pair in worst} == {f"{n:06d}.png" for n in range(5)}
    assert all(pair["generated"] == pair["training"] for pair in worst)
    assert all(pair["ratio"] == 0.0 for pair in worst)


def test_memorisation_draws_the_pairs(tmp_path):
    found = remembered(tmp_path).result["memorisation"]
    sheet = Image.open(tmp_path / "out" / found["pictures"])
    pixels = np.asarray(sheet)[TITLE_PX : TITLE_PX + CELL_PX]
    cells = [
        pixels[:, GAP_PX + n * (CELL_PX + GAP_PX) : GAP_PX + n * (CELL_PX + GAP_PX) + CELL_PX]
        for n in range(3)
    ]
    first = found["worst"][0]
    for cell, folder, key in zip(
        cells, ("generated", "pool", "pool"), ("generated", "training", "held_out"), strict=True
    ):
        expected = Image.open(tmp_path / folder / first[key]).resize(
            (CELL_PX, CELL_PX), Image.Resampling.NEAREST
        )
        np.testing.assert_array_equal(cell, np.asarray(expected))


def test_memorisation_needs_training_and_held_out(folders, tmp_path):
    with pytest.raises(InputError) as caught:
        run(*folders, tmp_path / "out", training=open_judged(folders[1], "training"))
    assert caught.value.code == "option_conflict"


def test_memorisation_needs_images_that_are_not_training_images(folders, tmp_path):
    _, real = folders
    with pytest.raises(InputError, match="training images") as caught:
        run(
            *folders,
            tmp_path / "out",
            training=open_judged(real, "training"),
            held_out=open_judged(real, "held_out"),
        )
    assert caught.value.code == "too_few_rows"


@needs_real_data
def test_cifar_images_lie_where_their_published_features_lie(tmp_path):
    import pyarrow.parquet

    column = pyarrow.parquet.read_table(REAL_DATA / "cifar10" / "test.parquet")["image"]
    contents = [row["bytes"] for row in column.slice(0, 24).to_pylist()]
    images = np.stack([np.asarray(Image.open(io.BytesIO(each))) for each in contents])
    np.savez(tmp_path / "samples.npz", images)
    weights = REAL_DATA / "cifar10" / "resnet56.safetensors"
    reference = load_features(REAL_DATA / "cifar10" / "test_resnet56_features.safetensors")
    save_file({"features": np.array(reference.features[:500])}, tmp_path / "real.safetensors")
    encoder = load_encoder("cifar10-resnet56", weights=weights, device="cpu")
    found = run(tmp_path / "samples.npz", tmp_path / "real.safetensors", tmp_path / "out", encoder)
    assert values(found)["precision"] == 1.0
    computed = load_features(tmp_path / "out" / "generated").features
    np.testing.assert_allclose(computed, reference.features[:24], atol=1e-4)
    assert found.result["scores"]["frechet"]["biased"] is True


@pytest.fixture
def quick_pixels(monkeypatch):
    """Pixels of 4 x 4 instead of 32 x 32, whose principal components take seconds."""

    def load(name, **_options):
        assert name == "pixels"
        return PixelEncoder(side_px=4, n_components=5)

    monkeypatch.setattr("gadc.evaluation.evaluate.load_encoder", load)


@pytest.mark.usefixtures("quick_pixels")
def test_command_prints_and_writes_the_numbers(gadc, folders, tmp_path):
    generated, real = folders
    done = gadc(
        "evaluate", generated, "--reference", real, "--encoder", "pixels", "--json", "-o",
        tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0
    written = json.loads((tmp_path / "out" / "evaluation.json").read_bytes())
    assert done.json == {"out": str(tmp_path / "out"), **written}
    shown = gadc("evaluate", generated, "--reference", real, "--encoder", "pixels")
    assert "Fréchet distance" in shown.stdout
    assert (tmp_path / "generated-evaluation" / "evaluation.json").is_file()


@pytest.mark.usefixtures("quick_pixels")
def test_command_takes_a_subset_and_verifies_it(gadc, tmp_path):
    pool = noise_images(30)
    data = write_pngs(tmp_path / "data" / "a", pool).parent
    write_pngs(tmp_path / "data" / "b", noise_images(10, seed=4))
    subset, _ = folder_subset(data, n_per_class=5)
    selected = tmp_path / "selected"
    selected.mkdir()
    subset.save(selected)
    generated = write_pngs(tmp_path / "generated", pool[:8])
    command = [
        "evaluate", generated, "--reference", data, "--encoder", "pixels", "--training", selected,
        "--held-out", data, "--source", data, "--json",
    ]  # fmt: skip
    found = gadc(*command).json["memorisation"]
    assert (found["n_training"], found["n_held_out"]) == (10, 30)
    assert found["near_copies"] >= 5 / 8
    write_pngs(data / "a", noise_images(1, seed=99))
    changed = gadc(*command, "-o", tmp_path / "again")
    assert (changed.code, changed.error_code) == (2, "source_changed")
    (data / "a" / "000000.png").unlink()
    gone = gadc(*command, "-o", tmp_path / "again")
    assert (gone.code, gone.error_code) == (2, "source_mismatch")


@pytest.mark.usefixtures("quick_pixels")
def test_command_names_the_option_in_its_errors(gadc, folders, tmp_path):
    generated, _ = folders
    large = write_pngs(tmp_path / "large", noise_images(6, side_px=24))
    failed = gadc("evaluate", generated, "--reference", large, "--encoder", "pixels")
    assert (failed.code, failed.error_code) == (2, "image_sizes")
    assert "--size-px 12" in failed.stderr
    missing = gadc("evaluate", generated, "--reference", tmp_path / "nothing")
    assert missing.error_code == "missing_source"
    selection = gadc("evaluate", generated, "--reference", tmp_path / "subset.parquet")
    assert selection.error_code == "bad_reference"
    unused = gadc("evaluate", generated, "--reference", large, "--source", large)
    assert unused.error_code == "option_unused"


@pytest.mark.parametrize("size_px", ["0", "100000"])
def test_size_that_no_image_can_be_scaled_to_is_an_error(gadc, folders, size_px):
    failed = gadc("evaluate", folders[0], "--reference", folders[1], "--size-px", size_px)
    assert (failed.code, failed.error_code) == (2, "bad_argument")
    assert f"--size-px {size_px} must lie between 1 and" in failed.stderr


def test_command_with_the_stand_in_network(gadc, folders, tmp_path, monkeypatch):
    install_stub(monkeypatch)
    torch.save(stub_weights(), tmp_path / "w.pth")
    done = gadc(
        "evaluate", folders[0], "--reference", folders[1], "--weights", tmp_path / "w.pth", "--json"
    )
    assert done.code == 0
    assert done.json["protocol"]["encoder"]["torch_fidelity"] == "0.0"
    assert done.json["scores"]["fid"]["value"] > 0.0


def test_settings_are_part_of_the_protocol(folders, tmp_path):
    first = run(*folders, tmp_path / "a")
    second = run(*folders, tmp_path / "b", seed=3)
    assert first.result["protocol_sha256"] != second.result["protocol_sha256"]
    assert dataclasses.replace(EvaluationSettings(), seed=3).seed == second.protocol["seed"]
