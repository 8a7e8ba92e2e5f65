"""Models that come in packages, as folders that `from_pretrained` loads."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Final

MINILM_FILES: Final = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
}


def copy_minilm(source: Path, target: Path) -> None:
    """Takes the files as they are."""
    for name in MINILM_FILES:
        shutil.copyfile(source / name, target / name)


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Keeps progress bars and advice of the library out of the terminal, which is the caller's."""
    from transformers.utils import logging

    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        # The bar of reading GGUF files heeds no setting. transformers' log keeps the stream it already has.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def convert_minilm_pair(source: Path, target: Path) -> None:
    """Makes an encoder-decoder of the model with itself (Rothe et al. 2020); what is new in it is drawn by one seed."""
    import torch
    from transformers import AutoTokenizer, EncoderDecoderModel

    for name in MINILM_FILES:
        if "token" in name:
            shutil.copyfile(source / name, target / name)
    tokenizer = AutoTokenizer.from_pretrained(target)
    with _silent_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(str(source), str(source))
        settings = {
            "decoder_start_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        model.config.update(settings)
        model.generation_config.update(**settings)  # type: ignore[no-untyped-call]
        model.save_pretrained(target)


def convert_rxn_bert(source: Path, target: Path) -> None:
    """Keeps the encoder and its pooler; the 50-class head that the file also holds is left behind."""
    import torch
    from transformers import BertConfig, BertModel

    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    kept = [*BertConfig().to_dict().keys() & settings.keys() - {"id2label", "label2id", "architectures"}]
    weights = torch.load(source / "pytorch_model.bin", weights_only=True, map_location="cpu")
    encoder = {
        name.removeprefix("bert."): value for name, value in weights.items() if name.startswith("bert.")
    }
    with _silent_transformers():
        model = BertModel(BertConfig(**{key: settings[key] for key in kept}))
        model.load_state_dict(encoder)
        model.save_pretrained(target)
        _write_smiles_tokenizer(source / "vocab.txt", target)


# Schwaller et al. 2019, "Molecular Transformer", as in rxnfp: one token for each atom, bond and bracket.
_SMILES = (
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"
)


def _write_smiles_tokenizer(vocabulary: Path, target: Path) -> None:
    """Writes the tokenizer of the reaction model, which no class of transformers is.

    A BertTokenizer on the same vocabulary would lower the case, and so read most atoms as unknown.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = {token: row for row, token in enumerate(vocabulary.read_text(encoding="utf-8").split())}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_SMILES), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokens[token]) for token in ("[CLS]", "[SEP]")],
    )
    special = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, model_max_length=512, **special
    )
    wrapped.save_pretrained(target)


SMOLLM2_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert_smollm2(source: Path, target: Path, blocks: int | None = None) -> None:
    """Takes the weights out of their 4-bit file, as float32; keeps the first blocks, or all of them."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with _silent_transformers():
        packed = LlamaForCausalLM.from_pretrained(source, gguf_file=SMOLLM2_FILE, dtype=torch.float32)
        settings = packed.config.to_dict()
        # With it, the saved folder would ask for the 4-bit file again.
        del settings["quantization_config"]
        settings["num_hidden_layers"] = blocks or settings["num_hidden_layers"]
        packed.model.layers = packed.model.layers[: settings["num_hidden_layers"]]
        model = LlamaForCausalLM(LlamaConfig(**settings))
        model.load_state_dict(packed.state_dict())
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_FILE).save_pretrained(target)
