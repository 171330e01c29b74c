"""A language model of a few thousand numbers, made from its configuration, and its tokenizer."""

import pathlib

WORDS = ("<pad>", "</s>", "<unk>", "<s>", *"abcdefghijklmnop", "0", "1", "?", "user", "assistant")
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)


def tokenizer(chat: bool = False):
    """Words at white space; with ``chat`` it has a template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        padding_side="left",
    )
    made.chat_template = CHAT if chat else None
    return made


def model(seed: int = 0, scale: float = 0.3, rope_theta: float = 10_000.0):
    """A Llama of two layers with weights that are large enough to matter."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=3,
        initializer_range=scale,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
    )
    return LlamaForCausalLM(config).eval()


def saved(folder: pathlib.Path, seed: int = 0, chat: bool = False) -> pathlib.Path:
    """The folder, with model and tokenizer in it."""
    model(seed).save_pretrained(folder)
    tokenizer(chat).save_pretrained(folder)
    return folder
