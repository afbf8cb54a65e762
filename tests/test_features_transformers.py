import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from features_helpers import encode_one, photo
from gadc.errors import InputError
from gadc.features.encoders import huggingface as huggingface_module
from gadc.features.encoders import load_encoder
from gadc.features.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from gadc.features.forward import BlockForward

transformers = pytest.importorskip("transformers")


def test_preprocessing_exact_size_then_crop():
    size = Preprocessing((20, 30), 10, "bilinear", (0, 0, 0), (1, 1, 1))
    expected = photo().resize((30, 20), Image.Resampling.BILINEAR).crop((10, 5, 20, 15))
    np.testing.assert_allclose(
        size(photo()), np.asarray(expected).transpose(2, 0, 1) / 255, atol=1e-6
    )


@pytest.mark.parametrize(
    ("size_px", "crop_px", "resample", "std"),
    [(10, 11, "bicubic", 1), (10, None, "bicubic", 1), (10, 8, "magic", 1), (10, 8, "box", 0)],
)
def test_preprocessing_refuses_what_it_cannot_do(size_px, crop_px, resample, std):
    with pytest.raises(InputError) as caught:
        Preprocessing(size_px, crop_px, resample, (0, 0, 0), (std, 1, 1))
    assert caught.value.code == "bad_preprocessing"


BIT = {
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
}
VIT = {
    "size": {"height": 28, "width": 28},
    "resample": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
CONVNEXT = {
    "size": {"shortest_edge": 28},
    "crop_pct": 0.7,
    "resample": 3,
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
}


@pytest.mark.parametrize(
    ("module", "processor_class", "config"),
    [
        ("bit.image_processing_pil_bit", "BitImageProcessorPil", BIT),
        ("vit.image_processing_pil_vit", "ViTImageProcessorPil", VIT),
        ("convnext.image_processing_pil_convnext", "ConvNextImageProcessorPil", CONVNEXT),
    ],
)
# Even margins: with odd ones the library's crop begins one pixel earlier than torchvision's.
@pytest.mark.parametrize("size", [(60, 40), (40, 60), (30, 30), (200, 90)])
def test_preprocessing_equals_the_librarys_on_pillow(module, processor_class, config, size):
    models = pytest.importorskip(f"transformers.models.{module}")
    processor = getattr(models, processor_class)(**config)
    saved = json.loads(processor.to_json_string())
    ours = huggingface_module.read_preprocessing(saved, "x")(photo(*size))
    theirs = processor(photo(*size), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "size_px", "crop_px"),
    [
        ({**VIT, "size": 28}, (28, 28), None),
        ({**BIT, "size": 40, "crop_size": 28}, 40, 28),
        ({**CONVNEXT, "size": 28}, 40, 28),
        ({**CONVNEXT, "size": {"shortest_edge": 384}}, (384, 384), None),
        ({**BIT, "do_center_crop": False}, 40, 40),
    ],
)
def test_preprocessing_reads_older_files(config, size_px, crop_px):
    found = huggingface_module.read_preprocessing(config, "x")
    assert (found.size_px, found.crop_px) == (size_px, crop_px)


@pytest.mark.parametrize(
    "change",
    [
        {"do_pad": True},
        {"size": {"longest_edge": 30}},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False},
        {"do_resize": False},
        {"resample": 5},
        {"resample": None},
        {"image_std": None},
    ],
)
def test_preprocessing_that_is_not_known_is_refused(change):
    with pytest.raises(InputError) as caught:
        huggingface_module.read_preprocessing({**BIT, **change}, "x")
    assert caught.value.code == "bad_preprocessing"


def save_model(folder, model, config=BIT):
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return f"transformers:{folder}"


def tiny_dinov2():
    torch.manual_seed(1)
    return transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=7
        )
    )


def tiny_vit_classifier():
    torch.manual_seed(1)
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=30,
            image_size=28,
            patch_size=7,
            id2label={0: "cat", 1: "dog", 2: "cow"},
            label2id={"cat": 0, "dog": 1, "cow": 2},
        )
    )


def tiny_resnet_classifier():
    torch.manual_seed(1)
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            num_labels=4,
        )
    )


@torch.no_grad()
def test_transformers_dinov2_gives_the_pooled_class_token(tmp_path):
    model = tiny_dinov2().eval()
    encoder = load_encoder(save_model(tmp_path, model), device="cpu")
    features, probabilities = encode_one(encoder)
    output = model(torch.from_numpy(encoder.preprocess(photo()))[None])
    np.testing.assert_allclose(features, output.pooler_output[0].numpy(), atol=1e-5)
    assert probabilities is None
    assert encoder.class_names is None
    assert encoder.n_features == 24


@torch.no_grad()
def test_transformers_vit_classifier_gives_the_class_token_and_probabilities(tmp_path):
    model = tiny_vit_classifier().eval()
    encoder = load_encoder(save_model(tmp_path, model, VIT), device="cpu")
    features, probabilities = encode_one(encoder)
    pixels = torch.from_numpy(encoder.preprocess(photo()))[None]
    token = model.vit(pixels).last_hidden_state[0, 0]
    np.testing.assert_allclose(features, token.numpy(), atol=1e-5)
    expected = model(pixels).logits.softmax(dim=1)[0]
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-6)
    assert encoder.class_names == ["cat", "dog", "cow"]


@torch.no_grad()
def test_transformers_resnet_classifier_gives_the_average_pool(tmp_path):
    model = tiny_resnet_classifier().eval()
    encoder = load_encoder(save_model(tmp_path, model), device="cpu")
    features, probabilities = encode_one(encoder)
    pixels = torch.from_numpy(encoder.preprocess(photo()))[None]
    hidden = model.resnet(pixels).last_hidden_state
    np.testing.assert_allclose(features, hidden.mean(dim=(2, 3))[0].numpy(), atol=1e-5)
    assert probabilities.shape == (4,)


@torch.no_grad()
def test_transformers_untrained_pooler_is_not_used(tmp_path):
    # A masked-image checkpoint has no pooler; the library would fill it with random numbers.
    model = transformers.ViTModel(tiny_vit_classifier().config, add_pooling_layer=False).eval()
    encoder = load_encoder(save_model(tmp_path, model, VIT), device="cpu")
    features, _ = encode_one(encoder)
    pixels = torch.from_numpy(encoder.preprocess(photo()))[None]
    np.testing.assert_allclose(features, model(pixels).last_hidden_state[0, 0].numpy(), atol=1e-5)


@torch.no_grad()
def test_transformers_clip_gives_the_image_tower(tmp_path):
    torch.manual_seed(1)
    tower = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**tower, "intermediate_size": 20, "vocab_size": 50},
            vision_config={**tower, "intermediate_size": 20, "image_size": 28, "patch_size": 7},
        )
    ).eval()
    encoder = load_encoder(save_model(tmp_path, model), device="cpu")
    features, _ = encode_one(encoder)
    pixels = torch.from_numpy(encoder.preprocess(photo()))[None]
    np.testing.assert_allclose(
        features, model.vision_model(pixels).pooler_output[0].numpy(), atol=1e-5
    )


@pytest.mark.parametrize("make_model", [tiny_dinov2, tiny_vit_classifier, tiny_resnet_classifier])
def test_transformers_features_do_not_depend_on_the_batch(tmp_path, make_model):
    encoder = load_encoder(save_model(tmp_path, make_model()), device="cpu")
    inputs = np.stack([encoder.preprocess(photo(seed=seed)) for seed in range(20)])
    with BlockForward(encoder, batch_size=1) as forward:
        together, _ = forward(inputs)
        alone, _ = forward(inputs[18:19])
    np.testing.assert_array_equal(alone[0], together[18])


def test_transformers_multi_label_head_gives_no_probabilities(tmp_path):
    model = tiny_vit_classifier()
    model.config.problem_type = "multi_label_classification"
    encoder = load_encoder(save_model(tmp_path, model, VIT), device="cpu")
    assert encoder.class_names is None
    assert encode_one(encoder)[1] is None


def test_transformers_fingerprint_follows_weights_and_preprocessing(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = load_encoder(save_model(tmp_path / "a", tiny_dinov2()), device="cpu").fingerprint()
    second = load_encoder(save_model(tmp_path / "b", tiny_dinov2(), VIT), device="cpu")
    assert first["weights_sha256"] == second.fingerprint()["weights_sha256"]
    assert first["preprocessing"] != second.fingerprint()["preprocessing"]
    assert first["transformers"] == transformers.__version__


def test_transformers_pickled_weights_are_refused(tmp_path):
    name = save_model(tmp_path, tiny_dinov2())
    torch.save(tiny_dinov2().state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="pickled weights are not read") as caught:
        load_encoder(name, device="cpu")
    assert caught.value.code == "unreadable_encoder"


def test_transformers_checkpoint_without_all_weights_is_refused(tmp_path):
    from safetensors.torch import load_file

    name = save_model(tmp_path, tiny_vit_classifier(), VIT)
    state = load_file(tmp_path / "model.safetensors")
    del state["classifier.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"classifier\.weight") as caught:
        load_encoder(name, device="cpu")
    assert caught.value.code == "incomplete_weights"


def test_transformers_repository_code_is_not_run(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "mine",
                "architectures": ["Mine"],
                "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Mine"},
            }
        )
    )
    (tmp_path / "mine.py").write_text(f"open({str(canary)!r}, 'w')")
    with pytest.raises(InputError):
        load_encoder(f"transformers:{tmp_path}", device="cpu")
    assert not canary.exists()


@pytest.mark.parametrize("missing", ["preprocessor_config.json", "config.json"])
def test_transformers_incomplete_folder_is_refused(tmp_path, missing):
    name = save_model(tmp_path, tiny_dinov2())
    (tmp_path / missing).unlink()
    with pytest.raises(InputError) as caught:
        load_encoder(name, device="cpu")
    assert caught.value.code == "unreadable_encoder"
