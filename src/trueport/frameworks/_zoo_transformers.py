"""Which architectures of transformers there are as zoo models: small, from their configuration classes, never fetched.

A row names the class that is built and what it takes. The sizes of a configuration go by different names from one
architecture to the next; `SIZES` has them all, and those that a configuration has are set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueport.frameworks import _zoo_scale
from trueport.frameworks._base import Unsupported
from trueport.frameworks._zoo_names import fetched, line, unknown
from trueport.frameworks._zoo_torch import Made

COUNT = 24
DEFAULTS = {"layers": 2, "width": 64, "heads": 4, "vocabulary": 512, "classes": 10, "length": 16, "size": 64}
SOUND = 4000
"""Samples of a sound when no length is asked for: the least that leaves a few frames after the feature encoder."""
SIZES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"),
    "width": ("hidden_size", "n_embd", "dim", "d_model", "n_embed"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"),
    "inner": ("intermediate_size", "n_inner", "hidden_dim", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
    "vocabulary": ("vocab_size",),
    "length": ("max_position_embeddings", "n_positions", "max_seq_len"),
    "classes": ("num_labels",),
    "size": ("image_size",),
}  # fmt: skip
"""Option -> the names under which configurations have it."""
TOKENS = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
"""Special tokens inside a small vocabulary. Without padding, a sentence's end is told by the mask alone."""


@dataclass(frozen=True)
class Row:
    """config: the architecture's own name. head: the class that is built. hub: whose weights it can have."""

    config: str
    head: str
    takes: str
    hub: str
    set: Mapping[str, Any] = field(default_factory=dict)


def _row(takes: str, head: str, config: str, hub: str, **set: Any) -> Row:
    return Row(config=config, head=head, takes=takes, hub=hub, set=set)


CLASSIFIER, CAUSAL = "AutoModelForSequenceClassification", "AutoModelForCausalLM"
PICTURE = "AutoModelForImageClassification"
STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}

ROWS: dict[str, Row] = {
    # Encoders of text
    "bert": _row("text", CLASSIFIER, "bert", "google-bert/bert-base-uncased"),
    "roberta": _row("text", CLASSIFIER, "roberta", "FacebookAI/roberta-base", pad_token_id=1),
    "distilbert": _row("text", CLASSIFIER, "distilbert", "distilbert/distilbert-base-uncased"),
    "albert": _row("text", CLASSIFIER, "albert", "albert/albert-base-v2", embedding_size=32),
    "electra": _row("text", CLASSIFIER, "electra", "google/electra-small-discriminator", embedding_size=32),
    "mobilebert": _row(
        "text", CLASSIFIER, "mobilebert", "google/mobilebert-uncased", embedding_size=32, intra_bottleneck_size=32,
        true_hidden_size=32, num_feedforward_networks=2,
    ),
    "mpnet": _row("text", CLASSIFIER, "mpnet", "microsoft/mpnet-base"),
    "squeezebert": _row("text", CLASSIFIER, "squeezebert", "squeezebert/squeezebert-uncased", embedding_size=64),
    "deberta-v2": _row("text", CLASSIFIER, "deberta-v2", "microsoft/deberta-v3-small"),
    "modernbert": _row("text", CLASSIFIER, "modernbert", "answerdotai/ModernBERT-base", pad_token_id=0),
    "fnet": _row("tokens", CLASSIFIER, "fnet", "google/fnet-base"),
    "xlm-roberta": _row("text", CLASSIFIER, "xlm-roberta", "FacebookAI/xlm-roberta-base", pad_token_id=1),
    "t5-encoder": _row("text", "T5EncoderModel", "t5", "google-t5/t5-small", d_kv=16),
    # Decoders
    "gpt2": _row("text", CAUSAL, "gpt2", "openai-community/gpt2"),
    "gpt_neo": _row(
        "text", CAUSAL, "gpt_neo", "EleutherAI/gpt-neo-125m", attention_types=[[["global", "local"], 1]], window_size=8
    ),
    "gpt_neox": _row("text", CAUSAL, "gpt_neox", "EleutherAI/pythia-70m"),
    "opt": _row("text", CAUSAL, "opt", "facebook/opt-125m", word_embed_proj_dim=64),
    "bloom": _row("text", CAUSAL, "bloom", "bigscience/bloom-560m"),
    "llama": _row("text", CAUSAL, "llama", "HuggingFaceTB/SmolLM2-135M", num_key_value_heads=2, head_dim=16),
    "mistral": _row("text", CAUSAL, "mistral", "mistralai/Mistral-7B-v0.1", num_key_value_heads=2, head_dim=16),
    "qwen2": _row("text", CAUSAL, "qwen2", "Qwen/Qwen2-0.5B", num_key_value_heads=2),
    "qwen3": _row("text", CAUSAL, "qwen3", "Qwen/Qwen3-0.6B", num_key_value_heads=2, head_dim=16),
    "gemma": _row("text", CAUSAL, "gemma", "google/gemma-2b", num_key_value_heads=2, head_dim=16),
    "phi": _row("text", CAUSAL, "phi", "microsoft/phi-1_5", num_key_value_heads=4),
    # Encoder and decoder
    "t5": _row("pair", "AutoModelForSeq2SeqLM", "t5", "google-t5/t5-small", d_kv=16, num_decoder_layers=2),
    "bart": _row("pair", "AutoModelForSeq2SeqLM", "bart", "facebook/bart-base"),
    # Pictures
    "vit": _row("picture", PICTURE, "vit", "google/vit-base-patch16-224"),
    "deit": _row("picture", "DeiTForImageClassification", "deit", "facebook/deit-tiny-patch16-224"),
    "beit": _row("picture", PICTURE, "beit", "microsoft/beit-base-patch16-224"),
    "dinov2": _row("picture", PICTURE, "dinov2", "facebook/dinov2-small-imagenet1k-1-layer", patch_size=16),
    "swin": _row("picture", PICTURE, "swin", "microsoft/swin-tiny-patch4-window7-224", embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4),
    "swinv2": _row("picture", PICTURE, "swinv2", "microsoft/swinv2-tiny-patch4-window8-256", embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4),
    "convnext": _row("picture", PICTURE, "convnext", "facebook/convnext-tiny-224", **STAGES),
    "convnextv2": _row("picture", PICTURE, "convnextv2", "facebook/convnextv2-atto-1k-224", **STAGES),
    "resnet": _row("picture", PICTURE, "resnet", "microsoft/resnet-18", embedding_size=16, layer_type="basic", **STAGES),
    "mobilenet_v2": _row("picture", PICTURE, "mobilenet_v2", "google/mobilenet_v2_1.0_224", depth_multiplier=0.35),
    "mobilevit": _row("picture", PICTURE, "mobilevit", "apple/mobilevit-xx-small", hidden_sizes=[32, 48, 64], neck_hidden_sizes=[8, 16, 24, 32, 48, 64, 80]),
    "segformer": _row("picture", PICTURE, "segformer", "nvidia/mit-b0", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1]),
    "poolformer": _row("picture", PICTURE, "poolformer", "sail/poolformer_s12", **STAGES),
    "regnet": _row("picture", PICTURE, "regnet", "facebook/regnet-y-040", embedding_size=16, groups_width=16, **STAGES),
    "levit": _row("picture", "LevitForImageClassification", "levit", "facebook/levit-128S", hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[8, 8, 8]),
    "clip-vision": _row("picture", "CLIPVisionModel", "clip_vision_model", "openai/clip-vit-base-patch32", patch_size=16),
    # Sound
    "wav2vec2": _row(
        "sound", CLASSIFIER.replace("Sequence", "Audio"), "wav2vec2", "facebook/wav2vec2-base", conv_dim=[32] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, classifier_proj_size=32,
    ),
}  # fmt: skip


def names() -> list[str]:
    """Every architecture, sorted."""
    return sorted(ROWS)


def model(name: str, options: Mapping[str, Any]) -> Made:
    """An architecture of transformers. Raises BadModel, Unsupported."""
    import transformers

    row = ROWS.get(name)
    if row is None:
        raise unknown("transformers", name, names())
    head = getattr(transformers, row.head)
    notes: list[str] = []
    if options["weights"] == "hub":
        told = {"use_safetensors": True, "output_loading_info": True}
        module, loaded = fetched("transformers", name, lambda: head.from_pretrained(row.hub, **told))
        config = module.config
        if loaded["missing_keys"]:
            missing = ", ".join(sorted(loaded["missing_keys"])[:3])
            notes.append(f"the pretrained weights of {row.hub} have no {missing}, ...: these are random")
    else:
        config = configured(row, options)
        try:
            module = (getattr(head, "from_config", None) or head)(config)
        except Exception as error:
            raise Unsupported(f"transformers cannot build '{name}' of these sizes ({line(error)})") from error
    module.eval()
    inputs = _data(row, config, options)
    return Made(module=_plain(module, row.takes), inputs=inputs, trained=options["weights"] == "hub", notes=notes)


def configured(row: Row, options: Mapping[str, Any]) -> Any:
    """The configuration with the sizes asked for, and the small defaults for the others."""
    import transformers

    own = transformers.AutoConfig.for_model(row.config)
    sizes = {**DEFAULTS, **{key: value for key, value in options.items() if key in DEFAULTS}}
    sizes["inner"] = 2 * sizes["width"]
    sizes["length"] = max(sizes["length"] + 8, 64)  # some architectures count positions from 2
    settings: dict[str, Any] = {}
    staged = "depths" in row.set  # its sizes are lists, one number for each stage, and the row has them all
    for option, spellings in SIZES.items():
        if staged and option in ("layers", "width", "heads", "inner"):
            continue
        present = [word for word in spellings if _is_one(getattr(own, word, None))]
        settings |= dict.fromkeys(present, sizes[option])
    settings |= row.set
    settings |= {key: value for key, value in TOKENS.items() if key not in row.set and hasattr(own, key)}
    return transformers.AutoConfig.for_model(row.config, **settings)


def _is_one(value: Any) -> bool:
    """Whether a setting is one whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def _data(row: Row, config: Any, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tokens with the mask that says where each text ends, pictures, or sounds."""
    count, seed = max(COUNT, options.get("batch") or 1), options.get("seed", 0)
    if row.takes == "picture":
        side = options.get("size") or getattr(config, "image_size", None) or DEFAULTS["size"]
        side = side if isinstance(side, int) else side[0]
        return {"pixel_values": np.moveaxis(_zoo_scale.pictures(count, (side, side, 3), seed), -1, 1).copy()}
    if row.takes == "sound":
        return {"input_values": _zoo_scale.signals(count, options.get("length", SOUND), seed)}
    length = options.get("length", DEFAULTS["length"])
    rng = np.random.default_rng([seed, 4])
    given = {"input_ids": rng.integers(0, config.vocab_size, (count, length))}
    if row.takes == "tokens":
        return given
    given["attention_mask"] = (np.arange(length) < rng.integers(length // 2, length + 1, (count, 1))).astype(np.int64)
    if row.takes == "pair":
        given["decoder_input_ids"] = rng.integers(0, config.vocab_size, (count, length))
    return given


def _plain(module: Any, takes: str) -> Any:
    """A module with the arguments that a row takes, which become the program's input names, and one tensor as result."""
    import torch

    class Plain(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def result(self, **given: Any) -> Any:
            """The logits, or what an encoder without a head gives. A decoder's cache would be an output of its own."""
            cached = {"use_cache": False} if hasattr(module.config, "use_cache") else {}
            made = self.net(**given, **cached, return_dict=True)
            logits = getattr(made, "logits", None)
            return made.last_hidden_state if logits is None else logits

    class Texts(Plain):
        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.result(input_ids=input_ids, attention_mask=attention_mask)

    class Tokens(Plain):
        def forward(self, input_ids: Any) -> Any:
            return self.result(input_ids=input_ids)

    class Pair(Plain):
        def forward(self, input_ids: Any, attention_mask: Any, decoder_input_ids: Any) -> Any:
            return self.result(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids)

    class Pictures(Plain):
        def forward(self, pixel_values: Any) -> Any:
            return self.result(pixel_values=pixel_values)

    class Sounds(Plain):
        def forward(self, input_values: Any) -> Any:
            return self.result(input_values=input_values)

    return {"text": Texts, "tokens": Tokens, "pair": Pair, "picture": Pictures, "sound": Sounds}[takes]()
