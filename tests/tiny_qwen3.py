"""A tiny Qwen3 embedding model with random weights, in the on-disk format of Qwen/Qwen3-Embedding-0.6B.

Everything but the sizes is as Qwen ships it: tokenizer classes and special tokens, the post-processor that appends
the end token, `add_bos_token: false`, the chat template, the modules and prompts of sentence-transformers. Each
option of `build` breaks one of the things a vector depends on.
"""

import json
from pathlib import Path
from typing import Any

END = "<|endoftext|>"
SPECIAL = (END, "<|im_start|>", "<|im_end|>")
HIDDEN = 32
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = (
    "Instruct: Given a review, represent how satisfied the customer is\nQuery:The mug arrived broken.",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "It was the best purchase of the year: sturdy, quiet, and it works every single day.",
    "I want my money back; support was rude and nobody ever answered a second letter.",
)
QUERY_PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


def build(
    folder: Path,
    *,
    padding_side: str = "left",
    pooling: str = "lasttoken",
    end_token: bool = True,
    modules: bool = True,
    max_length: int = 512,
    default_prompt: str | None = None,
) -> Path:
    """Write the model into `folder`, which is made, and give the folder back.

    Args:
        folder: where to.
        padding_side: of the tokenizer; Qwen ships "left".
        pooling: "lasttoken" as Qwen ships it, or "mean".
        end_token: whether the tokenizer appends the end token.
        modules: whether it is a sentence-transformers model, or bare transformers.
        max_length: tokens of the window.
        default_prompt: name of a prompt that sentence-transformers would put before every text.
    """
    import torch
    from transformers import Qwen3Config, Qwen3Model

    folder.mkdir(parents=True)
    n_tokens = _write_tokenizer(folder, padding_side, end_token, max_length)
    end = n_tokens - len(SPECIAL)
    config = Qwen3Config(
        vocab_size=n_tokens,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=4096,
        bos_token_id=end,
        eos_token_id=end,
        tie_word_embeddings=True,
    )
    model = Qwen3Model(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:  # far from the usual .02, or the last token alone would decide the vector
                weight.normal_(std=0.4, generator=generator)
    model.save_pretrained(folder)
    shipped = json.loads((folder / "config.json").read_text())
    _write(folder / "config.json", {**shipped, "architectures": ["Qwen3ForCausalLM"]})
    if modules:
        _write_modules(folder, pooling, max_length, default_prompt)
    return folder


def _write_tokenizer(folder: Path, padding_side: str, end_token: bool, max_length: int) -> int:
    """Write a small byte-level BPE as Qwen's; gives the number of its tokens, special ones last."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    steps = [processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)]
    if end_token:
        steps.append(
            processors.TemplateProcessing(
                single=f"$A:0 {END}:0",
                pair=f"$A:0 {END}:0 $B:1 {END}:1",
                special_tokens=[(END, tokenizer.token_to_id(END))],
            )
        )
    tokenizer.post_processor = processors.Sequence(steps)
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    _write(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {str(tokenizer.token_to_id(one)): {"content": one, **flags} for one in SPECIAL},
            "additional_special_tokens": list(SPECIAL[1:]),
            "bos_token": None,
            "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": max_length,
            "pad_token": END,
            "padding_side": padding_side,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    _write(folder / "vocab.json", vocabulary["vocab"])
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in vocabulary["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    return tokenizer.get_vocab_size()


def _write_modules(folder: Path, pooling: str, max_length: int, default_prompt: str | None) -> None:
    """Write what makes a transformers model a sentence-transformers model."""
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    _write(
        folder / "modules.json",
        [
            {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for idx, (kind, path) in enumerate(kinds)
        ],
    )
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    chosen = {"lasttoken": "lasttoken", "mean": "mean_tokens"}[pooling]
    (folder / "1_Pooling").mkdir()
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": HIDDEN,
            **{f"pooling_mode_{mode}": mode == chosen for mode in modes},
            "include_prompt": True,
        },
    )
    _write(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": QUERY_PROMPT, "document": ""},
            "default_prompt_name": default_prompt,
            "similarity_fn_name": "cosine",
        },
    )
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
