"""What a model name means.

    "lexical"                              hashed words and character n-grams, built in, nothing to download
    "openrouter/qwen/qwen3-embedding-8b"   a hosted route through litellm: the first part names the provider
    "path/to/model"                        an existing folder: a sentence-transformers model, in process
    "Qwen/Qwen3-Embedding-0.6B"            anything else: a model of the Hugging Face hub, in process
    embedder=...                           your own `dspy.Embedder` or callable, list of texts -> (n, d)

Each becomes a `Backend`: a callable to hand to `dspy.Embedder`, and the identity that keeps its vectors apart.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import dspy
import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import EmbeddingError, InputError, ModelUnavailableError, shown
from dspy_qvl.lexical import LexicalModel

DEFAULT_MODEL = "Qwen/Qwen3-Embedding-0.6B"
HOSTED_QWEN = "openrouter/qwen/qwen3-embedding-8b"
LEXICAL = "lexical"

# Output sizes from the model cards of Qwen3-Embedding.
QWEN3_SIZES = {"0.6b": 1024, "4b": 2560, "8b": 4096}
QWEN3_DIM = 768
LEXICAL_DIM = 4096

# litellm providers with an embedding endpoint; the first part of a hosted model name.
PROVIDERS = frozenset(
    "azure bedrock cohere dashscope databricks deepinfra fireworks_ai gemini github hosted_vllm huggingface infinity "
    "jina_ai litellm_proxy lm_studio mistral nebius nscale nvidia_nim ollama openai openai_like openrouter sagemaker "
    "sambanova together_ai vertex_ai volcengine voyage watsonx xinference".split()
)
EMBEDDING_NAME = re.compile(r"embed|e5|gte|bge|instructor|minilm|mpnet|jina|nomic|stella|voyage|sfr", re.I)
CHAT_NAME = re.compile(
    r"[-_.](instruct|chat|it)(?![a-z])|(^|/)(gpt-|chatgpt|o[1-9](-|$)|claude|qwen[\d.]*[-_]|qwen[\d.]*$|qwq|llama|"
    r"mistral|mixtral|gemma|gemini-|deepseek|phi-|command|grok|kimi|glm-)",
    re.I,
)

Embed = Callable[[list[str]], Any]


@dataclass(frozen=True)
class Backend:
    """What one model name means.

    Attributes:
        name: how messages call the model.
        identity: what makes two vectors comparable, for saved states; None for an anonymous callable.
        endpoint: where the model is served, without user, password or query; part of the cache's key only.
        size: length of a full vector, or None if only the first vector tells.
        default_dim: `embedding_dim` where the caller gives none, or None for the model's own size.
        embed: list of texts -> (n, size); a `dspy.Embedder`, or what can be handed to one.
        batch_size: texts a call.
        keep_on_disk: whether a vector is worth storing.
        slots: batches that run well at once.
        width: how many of them one caller may have.
        is_async: whether `embed` has an `acall` that does not block.
        is_served: whether another process may change the model under its name.
        tells_texts_apart: whether a failure tells the texts it is about from the others of the batch.
        measure: list of texts -> what they cost, or None where they are only counted.
    """

    name: str
    identity: Mapping[str, str] | None
    embed: Embed
    endpoint: str = ""
    size: int | None = None
    default_dim: int | None = None
    batch_size: int = 32
    keep_on_disk: bool = True
    slots: int = 1
    width: int = 1
    is_async: bool = False
    is_served: bool = False
    tells_texts_apart: bool = False
    measure: Callable[[list[str]], Any] | None = None


@dataclass(frozen=True)
class ModelSpec:
    """What the caller said about the model; enough to make its backend again. Pickled without secrets.

    Attributes:
        model_name: see the module's docstring.
        embedding_dim: columns to keep, or None; for the lexical model the number of hashed features.
        api_base: where a hosted model is served, or None for the provider's own address.
        api_key: the provider's key, or None for its environment variable.
        embedder: a `dspy.Embedder` or callable that takes the place of `model_name`.
    """

    model_name: str
    embedding_dim: int | None = None
    api_base: str | None = field(default=None, repr=False)  # may hold a user and password
    api_key: str | None = field(default=None, repr=False)
    embedder: Any = None

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "api_key": None, "api_base": _public_address(self.api_base) or None}
        if isinstance(self.embedder, dspy.Embedder):
            state["embedder"] = _without_secrets(self.embedder)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def backend(self) -> Backend:
        """The backend this describes; nothing is loaded or sent yet.

        Raises:
            InputError: a chat model, an unusable name, or an embedder that cannot be called.
        """
        if self.embedder is not None:
            return _custom(self.embedder)
        if not isinstance(self.model_name, str) or not self.model_name.strip():
            raise InputError(f"model_name must be the name of an embedding model, but got {shown(self.model_name)}.")
        if self.model_name.strip().lower() == LEXICAL:
            return _lexical(LEXICAL_DIM if self.embedding_dim is None else self.embedding_dim)
        if Path(self.model_name).is_dir():
            return _folder(Path(self.model_name))
        refuse_chat_model(self.model_name)
        if self.api_base is not None and "@" in urlsplit(self.api_base).netloc:
            raise InputError("api_base must not hold a user or password, which would show in errors; use api_key.")
        if self.model_name.split("/")[0] in PROVIDERS:
            return _hosted(self)
        if self.api_base is not None:
            raise InputError(
                f"api_base was given, but {self.model_name!r} names no provider; put one first, for instance "
                f"'openai/{self.model_name}' for any server that speaks OpenAI's protocol."
            )
        return _from_hub(self.model_name)


def refuse_chat_model(model_name: str) -> None:
    """Refuse the name of a model that writes text instead of embedding it.

    Raises:
        InputError: the name is a chat model's.
    """
    if CHAT_NAME.search(model_name) and not EMBEDDING_NAME.search(model_name):
        raise InputError(
            f"{model_name!r} is a chat model and gives no embeddings; use {DEFAULT_MODEL!r} in process, "
            f"{HOSTED_QWEN!r} hosted, or {LEXICAL!r} with nothing to download."
        )


# Lexical


def _lexical(n_features: int) -> Backend:
    model = LexicalModel(n_features)
    return Backend(
        name=f"the lexical model ({n_features} features)",
        identity={"model": LEXICAL, "version": "2", "features": str(n_features)},
        embed=model,
        size=n_features,
        default_dim=n_features,
        batch_size=256,
        keep_on_disk=False,  # hashing a text is as cheap as reading its vector
    )


# In process

_LOADED: dict[str, Any] = {}
_LOADING = threading.Lock()


class LocalModel:
    """A sentence-transformers model in this process, loaded at first use, once per process.

    Args:
        source: a folder, or a name on the Hugging Face hub.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, (n, d), as the model gives them."""
        vectors: NDArray[np.float32] = self._load().encode(
            list(texts), batch_size=len(texts), convert_to_numpy=True, show_progress_bar=False
        )
        return vectors

    def _load(self) -> Any:
        with _LOADING:
            if self.source not in _LOADED:
                try:
                    from sentence_transformers import SentenceTransformer
                except ImportError as error:
                    raise ModelUnavailableError(
                        f"{self.source!r} runs in process and needs sentence-transformers. {_ways_out()}"
                    ) from error
                try:
                    _LOADED[self.source] = SentenceTransformer(self.source)
                except Exception as error:
                    raise ModelUnavailableError(
                        f"{self.source!r} could not be loaded ({type(error).__name__}: {error}). {_ways_out()}"
                    ) from error
            return _LOADED[self.source]


def _ways_out() -> str:
    return (
        "Three ways out: pip install 'dspy_qvl[local]' on a machine that has or can fetch the weights; "
        f"model_name={HOSTED_QWEN!r} with api_key or the provider's environment variable; "
        f"or model_name={LEXICAL!r}, which needs nothing."
    )


def _from_hub(model_name: str) -> Backend:
    return Backend(
        name=repr(model_name),
        identity={"model": model_name, "backend": "sentence-transformers"},
        embed=LocalModel(model_name),
        size=_qwen3_size(model_name),
        default_dim=_qwen3_dim(model_name),
    )


def _folder(folder: Path) -> Backend:
    if not (folder / "config.json").exists() and not (folder / "modules.json").exists():
        raise InputError(f"{str(folder)!r} holds no embedding model: neither config.json nor modules.json is in it.")
    return Backend(
        name=f"the model in {folder.name!r}",
        identity={"model": folder.name, "backend": "sentence-transformers", "content": _fingerprint(folder)},
        embed=LocalModel(str(folder.resolve())),
        default_dim=_qwen3_dim(folder.name),
    )


def _fingerprint(folder: Path) -> str:
    """A digest of the files of a model: all of the small ones, size, start and end of the large ones."""
    digest = hashlib.blake2b(digest_size=16)
    edge = 2**20
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors", ".txt")]
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(edge))
            if size > edge:
                file.seek(max(edge, size - edge))
                digest.update(file.read(edge))
    return digest.hexdigest()


def _qwen3_size(model_name: str) -> int | None:
    match = re.search(r"qwen3-embedding[-:_](0\.6b|4b|8b)", model_name, re.I)
    return QWEN3_SIZES[match[1].lower()] if match else None


def _qwen3_dim(model_name: str) -> int | None:
    return QWEN3_DIM if "qwen3-embedding" in model_name.lower() else None


# Hosted


class HostedModel:
    """An embedding route of litellm.

    Args:
        spec: names the route, and carries its address and key.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Full-size vectors of texts, in the order of the texts whatever the order of the answer."""
        import litellm

        litellm.suppress_debug_info = True  # its advice would be printed to stdout at every error
        address: dict[str, Any] = {"api_key": self._spec.api_key, "api_base": self._spec.api_base}
        try:
            response = litellm.embedding(
                model=self._spec.model_name,
                input=list(texts),
                **{name: value for name, value in address.items() if value is not None},
            )
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            if self._spec.api_key:
                message = message.replace(self._spec.api_key, "<key>")
            # The original error would show the key in a traceback, so it is not chained.
            raise EmbeddingError(message) from None
        return [row["embedding"] for row in _in_order(response.data)]


def _in_order(rows: Sequence[Any]) -> Sequence[Any]:
    """Rows by their index; as they came where a server leaves it out or writes 0 everywhere."""
    try:
        numbered = sorted(rows, key=lambda row: int(row["index"]))
        return numbered if [row["index"] for row in numbered] == list(range(len(rows))) else rows
    except (KeyError, AttributeError, TypeError):
        return rows


def _hosted(spec: ModelSpec) -> Backend:
    return Backend(
        name=f"the route {spec.model_name!r}",
        identity={"model": spec.model_name, "backend": "litellm"},
        embed=HostedModel(spec),
        endpoint=_public_address(spec.api_base),
        size=_qwen3_size(spec.model_name),
        default_dim=_qwen3_dim(spec.model_name),
        batch_size=10 if spec.model_name.startswith("dashscope/") else 64,  # DashScope takes at most 10 a call
    )


def _public_address(api_base: str | None) -> str:
    """An address without user, password, query and fragment: nothing secret reaches a key or a file."""
    if not api_base:
        return ""
    parts = urlsplit(api_base)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


# The caller's own


def _custom(embedder: Any) -> Backend:
    model = embedder.model if isinstance(embedder, dspy.Embedder) else embedder
    if not callable(embedder):
        raise InputError(f"embedder must be a dspy.Embedder or a callable, but got {type(embedder).__name__}.")
    name = model if isinstance(model, str) else getattr(embedder, "name", None) or getattr(model, "name", None)
    if name is not None and not isinstance(name, str):
        raise InputError(f"the name of an embedder must be a string, but got {type(name).__name__}: {shown(name)}.")
    if isinstance(model, str):
        refuse_chat_model(model)
    own = embedder.default_kwargs if isinstance(embedder, dspy.Embedder) else {}
    address = own.get("api_base") or own.get("base_url")
    return Backend(
        name=f"the embedder {name!r}" if name else "the embedder",
        identity={"model": name, "backend": "embedder"} if name else None,
        embed=embedder,
        endpoint=_public_address(str(address) if address else None),
        batch_size=embedder.batch_size if isinstance(embedder, dspy.Embedder) else 64,
        keep_on_disk=name is not None,
    )


def _without_secrets(embedder: dspy.Embedder) -> dspy.Embedder:
    """The same embedder without the arguments that may hold a key."""
    secret = re.compile(r"key|token|secret|password|credential|header", re.I)
    kept = {name: value for name, value in embedder.default_kwargs.items() if not secret.search(name)}
    bare = dspy.Embedder(embedder.model, batch_size=embedder.batch_size, caching=embedder.caching, **kept)
    if hasattr(embedder, "name"):
        bare.name = embedder.name
    return bare
