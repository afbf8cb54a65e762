"""Token embeddings of texts, by the encoder of a T5 model."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch

from gadc.errors import InputError, MissingExtraError, RunError
from gadc.features.encoders.base import state_sha256

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "google/flan-t5-xl"
DEFAULT_TEMPLATE = "a photo of a {class_name}"
"""As D2C, appendix C."""
N_TOKENS = 16
"""As the published work; longer texts are cut, with a warning."""
MOST_TOKENS = 4096
"""Attention takes the square of it."""
TEXTS_AT_A_TIME = 32
T5_TYPES = frozenset(["t5", "mt5", "umt5"])
FEWEST_PIECES = 2
"""Where there is no file for it, transformers makes up a tokeniser that knows a single piece, and
every text becomes the same row of unknown tokens."""
Precision = Literal["float32", "bfloat16"]
"""Not float16: T5's activations overflow it."""


class TextEncoder:
    """A tokeniser and a T5 encoder.

    Args:
        name: Hub id or folder.
        tokeniser: Of transformers.
        model: A `T5EncoderModel`.
        device: Where to compute.
        n_tokens: Every text is padded, or cut, to so many tokens.
        settings: More for the fingerprint, such as versions.

    Raises:
        InputError: `bad_argument`: fewer than 1 token, or more than 4,096;
            `unsupported_encoder`: a tokeniser that can't pad.
    """

    def __init__(
        self,
        name: str,
        tokeniser: Any,
        model: Any,
        *,
        device: torch.device,
        n_tokens: int = N_TOKENS,
        settings: dict[str, Any] | None = None,
    ) -> None:
        if not 1 <= n_tokens <= MOST_TOKENS:
            raise InputError(
                "bad_argument", f"n_tokens={n_tokens} must lie between 1 and {MOST_TOKENS}"
            )
        if tokeniser.pad_token_id is None:
            raise InputError(
                "unsupported_encoder", f"text encoder {name}: its tokeniser has no padding token"
            )
        self.name, self.n_tokens = name, n_tokens
        self.device = device
        self._tokeniser = tokeniser
        self._weights_sha256 = state_sha256(model)
        self._model = model.to(device).eval()
        self._settings = settings or {}

    @property
    def width(self) -> int:
        """Length of a token's embedding."""
        return int(self._model.config.d_model)

    def fingerprint(self) -> dict[str, Any]:
        """Return all that embeddings depend on besides the text."""
        return {
            "name": self.name,
            "weights_sha256": self._weights_sha256,
            "n_tokens": self.n_tokens,
            "precision": str(self._model.dtype).removeprefix("torch."),
            **self._settings,
        }

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings of texts, float32 [n, n_tokens, width], zeros for padding.

        Raises:
            RunError: `features_not_finite`: the weights give NaN.
        """
        self._warn_of_cuts(texts)
        blocks = []
        for start in range(0, len(texts), TEXTS_AT_A_TIME):
            given = self._tokeniser(
                list(texts[start : start + TEXTS_AT_A_TIME]),
                padding="max_length",
                truncation=True,
                max_length=self.n_tokens,
                return_attention_mask=True,
                return_tensors="pt",
            )
            ids = given["input_ids"].to(self.device)
            mask = given["attention_mask"].to(self.device)  # [b, n_tokens]
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            blocks.append(torch.where(mask[:, :, None] != 0, hidden.float(), 0.0).cpu())
        found = torch.cat(blocks)
        if not torch.isfinite(found).all():
            raise RunError(
                "features_not_finite",
                f"text encoder {self.name} gives NaN or infinity; check the weights",
            )
        return found.clone()  # leaves inference mode behind

    def _warn_of_cuts(self, texts: Sequence[str]) -> None:
        whole = self._tokeniser(list(texts), padding=False, truncation=False, verbose=False)
        cut = [
            text
            for text, ids in zip(texts, whole["input_ids"], strict=True)
            if len(ids) > self.n_tokens
        ]
        if cut:
            logger.warning(
                "%d of %d texts have more than %d tokens and are cut there, the first: %r; more "
                "tokens keep them whole",
                len(cut),
                len(texts),
                self.n_tokens,
                cut[0],
            )


def load_text_encoder(
    name: str = DEFAULT_MODEL,
    *,
    device: torch.device,
    n_tokens: int = N_TOKENS,
    precision: Precision = "float32",
) -> TextEncoder:
    """Load the encoder half of a T5 model of the Hugging Face hub, or of a local folder.

    Only safetensors weights are read, and no code of the repository is run.

    Args:
        name: Hub id or folder with config, tokeniser and weights; the decoder may be there too.
        device: Where to compute.
        n_tokens: See `TextEncoder`.
        precision: Of weights and arithmetic; bfloat16 halves the memory.

    Raises:
        MissingExtraError: transformers is not installed.
        InputError: `unreadable_encoder`, `incomplete_weights`, `unsupported_encoder`.
    """
    if precision not in get_args(Precision):
        raise InputError("bad_choice", f"precision={precision!r}; use float32 or bfloat16")
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            "missing_extra", f"text encoder {name} needs transformers: pip install 'gadc[encoders]'"
        ) from error
    with _as_input_errors(name):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    if config.model_type not in T5_TYPES:
        raise InputError(
            "unsupported_encoder",
            f"text encoder {name} is a model of type {config.model_type}; supported are "
            f"{', '.join(sorted(T5_TYPES))}",
        )
    model_class: Any = {
        "t5": transformers.T5EncoderModel,
        "mt5": transformers.MT5EncoderModel,
        "umt5": transformers.UMT5EncoderModel,
    }[config.model_type]
    with _as_input_errors(name):
        tokeniser = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model, report = model_class.from_pretrained(
            name,
            config=config,
            use_safetensors=True,
            dtype=getattr(torch, precision),
            output_loading_info=True,
        )
    if len(set(tokeniser.get_vocab()) - set(tokeniser.added_tokens_encoder)) < FEWEST_PIECES:
        raise InputError(
            "unreadable_encoder",
            f"text encoder {name} has no tokeniser; add its tokenizer.json",
        )
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:5])
        raise InputError(
            "incomplete_weights",
            f"text encoder {name}: the checkpoint lacks weights of {type(model).__name__}: "
            f"{missing or 'shapes differ'}",
        )
    return TextEncoder(
        name,
        tokeniser,
        model,
        device=device,
        n_tokens=n_tokens,
        settings={"transformers": transformers.__version__},
    )


@contextlib.contextmanager
def _as_input_errors(name: str) -> Iterator[None]:
    """Turn the library's many ways of saying "not found" into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(
            "unreadable_encoder",
            f"text encoder {name} can't be loaded: {reason} Give a hub id or a folder with "
            "config.json, tokenizer.json and model.safetensors; pickled weights are not read",
        ) from error
