"""Qwen's instruction, put before a text."""


def instructed(text: str, instruction: str | None) -> str:
    """The string a Qwen3 embedding model is sent: with an instruction, Qwen's query form; without, the text.

    Source: the model card of Qwen3-Embedding ("Instruct: {task}" newline "Query:{text}", no space after Query).
    """
    return text if instruction is None else f"Instruct: {instruction}\nQuery:{text}"
