"""Qwen's instruction, put before a text, and the string that a model is sent for it."""


def instructed(text: str, instruction: str | None) -> str:
    """The string a Qwen3 embedding model is sent: with an instruction, Qwen's query form; without, the text.

    Source: the model card of Qwen3-Embedding ("Instruct: {task}" newline "Query:{text}", no space after Query).
    """
    return text if instruction is None else f"Instruct: {instruction}\nQuery:{text}"


def sent(instruction: str | None, text: str, instruct: bool) -> str:
    """The string that a model is sent for a text, with the instruction before it if `instruct`; "" for a blank text."""
    if not text.strip():
        return ""
    return instructed(text, instruction) if instruct else text
