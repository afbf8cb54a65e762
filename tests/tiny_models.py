"""Tiny T5 and DINOv2 models that tests save themselves and load as anybody's."""

import json

import pytest
import torch

from gadc.features.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD

transformers = pytest.importorskip("transformers")

WORDS = ["a", "photo", "of", "blue", "green", "red", "</w>"]
T5_WIDTH, DINO_WIDTH, PATCH_PX = 12, 24, 7
PREPROCESSING = {
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
}


def t5_config():
    return transformers.T5Config(
        vocab_size=32,
        d_model=T5_WIDTH,
        d_kv=4,
        d_ff=16,
        num_layers=2,
        num_heads=3,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def save_tokeniser(folder):
    import tokenizers

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{w: n for n, w in enumerate(WORDS, 3)}}
    tokeniser = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokeniser.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokeniser.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokeniser, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def save_t5(folder, *, whole=False, seed=1):
    """Save an encoder, or a whole model with its decoder as the hub's checkpoints are."""
    torch.manual_seed(seed)
    model_class = transformers.T5ForConditionalGeneration if whole else transformers.T5EncoderModel
    model = model_class(t5_config())
    model.save_pretrained(folder)
    save_tokeniser(folder)
    return model.eval()


def save_dinov2(folder, *, seed=1, n_registers=0):
    torch.manual_seed(seed)
    options = {
        "hidden_size": DINO_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 28,
        "patch_size": PATCH_PX,
    }
    if n_registers:
        config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=n_registers)
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**options))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return model.eval()
