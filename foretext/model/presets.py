"""Named encoders: each is an architecture that exists in the field, so that export is only a renaming."""

from foretext.errors import UserError
from foretext.model.convert import ConvertConfig
from foretext.model.encoder import EncoderConfig

SIZES = {  # width, layers, heads; the feed-forward part is four times as wide (Turc et al., arXiv 1908.08962, and BERT)
    "tiny": (128, 2, 2),
    "mini": (256, 4, 4),
    "small": (512, 4, 8),
    "medium": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}

MODERN_SIZES = {  # width, layers, heads, feed-forward width; base and large are ModernBERT's own (arXiv 2412.13663, table 4)
    "tiny": (128, 2, 2, 192),
    "mini": (256, 4, 4, 384),
    "small": (512, 4, 8, 768),
    "medium": (512, 8, 8, 768),
    "base": (768, 22, 12, 1152),
    "large": (1024, 28, 16, 2624),
}

EXCEPTIONS = {  # sizes that do not follow their family's table
    "electra-small": {"width": 256, "layers": 12, "heads": 4, "ffn_width": 1024, "embedding_width": 128},  # arXiv 2003.10555, table 6
    "bart-base": {"layers": 6},  # of the encoder; as many in the decoder (arXiv 1910.13461, section 2.1)
    "bart-large": {"layers": 12},
}

FAMILIES = {
    "bert": {"family": "bert", "types": 2, "norm_eps": 1e-12},
    "roberta": {"family": "roberta", "types": 1, "norm_eps": 1e-5},
    "bart": {"family": "roberta", "types": 1, "norm_eps": 1e-5},  # BART's encoder is RoBERTa's layer; the decoder is seq2seq's
    "electra": {"family": "electra", "types": 2, "norm_eps": 1e-12},
    "mpnet": {"family": "mpnet", "types": 0, "norm_eps": 1e-5},
    "modernbert": {"family": "modernbert", "types": 0, "norm_eps": 1e-5, "window": 64, "max_len": 8192},
}

CONVERT = {  # name -> what differs from the paper's network (arXiv 1911.03688)
    "convert": {},
    "convert-mini": {"width": 256, "ffn_width": 1024},  # a quarter of the work, for processors
}


def is_preset(name: str) -> bool:
    """Whether `name` is a preset's, not a folder's."""
    family, _, size = name.rpartition("-")
    return name in CONVERT or (family in FAMILIES and size in SIZES)


def preset(name: str, vocab_size: int, **changes) -> EncoderConfig | ConvertConfig:
    """The configuration `family-size`, for example `bert-mini`, `electra-small`, `mpnet-base`, `modernbert-small`; or `convert`.

    Args:
        changes: fields of `EncoderConfig` (`ConvertConfig`) to set otherwise (`max_len=128`).
    Raises:
        UserError: no such family or size.
    """
    if name in CONVERT:
        return ConvertConfig(vocab_size=vocab_size, **(CONVERT[name] | changes))
    family, _, size = name.rpartition("-")
    sizes = MODERN_SIZES if family == "modernbert" else SIZES
    if family not in FAMILIES or size not in sizes:
        raise UserError(f"no encoder is called {name!r}: take one of {', '.join(FAMILIES)}, a dash, and one of {', '.join(SIZES)}; "
                        f"or one of {', '.join(CONVERT)}")
    width, layers, heads, *ffn = sizes[size]
    shape = {"width": width, "layers": layers, "heads": heads, "ffn_width": ffn[0] if ffn else 4 * width}
    return EncoderConfig(vocab_size=vocab_size, **(FAMILIES[family] | shape | EXCEPTIONS.get(name, {}) | changes))
