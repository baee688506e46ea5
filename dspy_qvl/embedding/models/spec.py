"""The meaning of a model name. To add a kind of model in this process, add a case to `ModelSpec.model_at`.

    "lexical"                              hashed words and character n-grams, built in, nothing to download
    "openrouter/qwen/qwen3-embedding-8b"   a hosted route through litellm: the first part names the provider
    "path/to/model"                        an existing folder: a static model, or one of sentence-transformers, in
                                           process; what counts in it, and what is refused, is in `local/folder.py`
    "Qwen/Qwen3-Embedding-0.6B"            anything else: a model of the Hugging Face hub, in process; its files tell
                                           static ones from others (`static/recognition.py`)
    embedder=...                           your own `dspy.Embedder` or callable, plain or async, list of texts -> (n, d)
    embedder=Precomputed(texts, vectors)   vectors that exist already

Each becomes an `EmbeddingModel`: a callable to hand to `dspy.Embedder`, and the identity that keeps its vectors apart.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dspy

from dspy_qvl.embedding.models import custom, hosted
from dspy_qvl.embedding.models.lexical import LexicalModel
from dspy_qvl.embedding.models.local import WEIGHTS, LocalModel, identity_of
from dspy_qvl.embedding.models.model import EmbeddingModel
from dspy_qvl.embedding.models.precomputed import TABLE_PROBE_TEXTS, Precomputed
from dspy_qvl.embedding.models.static import SETTINGS_FILES, STATIC, StaticEmbeddingModel, saved_in, saved_on_hub
from dspy_qvl.errors import EmbeddingError, InputError, StateError, check_count, check_optional_string, shown

DEFAULT_MODEL = "Qwen/Qwen3-Embedding-0.6B"
HOSTED_QWEN = "openrouter/qwen/qwen3-embedding-8b"
LEXICAL = "lexical"

# Output sizes from the model cards of Qwen3-Embedding.
QWEN3_SIZES = {"0.6b": 1024, "4b": 2560, "8b": 4096}
QWEN3_DIM = 768
LEXICAL_DIM = 4096

EMBEDDING_NAME = re.compile(r"embed|e5|gte|bge|instructor|minilm|mpnet|jina|nomic|stella|voyage|sfr", re.I)
CHAT_NAME = re.compile(
    r"[-_.](instruct|chat|it)(?![a-z])|(^|/)(gpt-|chatgpt|o[1-9](-|$)|claude|qwen[\d.]*[-_]|qwen[\d.]*$|qwq|llama|"
    r"mistral|mixtral|gemma|gemini-|deepseek|phi-|command|grok|kimi|glm-)",
    re.I,
)

# Kinds of models, and the settings that only they have; each left out means the value that suits the model.
IN_PROCESS, HOSTED, STATIC_MODEL = "a model in process", "a hosted model", "a static model"
OWN_SETTINGS = {
    IN_PROCESS: ("device", "precision", "backend", "revision", "long_text"),
    HOSTED: ("requests_per_minute", "timeout"),
    STATIC_MODEL: ("backend", "revision"),
}
LONGEST_NAME = 1000  # of a model, or of its folder
THAT_CHANGE_VECTORS = ("precision", "revision", "long_text")

LOCAL = "sentence-transformers"  # in identities
THAT_NAME = ("model", "revision")  # parts of the identity of a static model on the hub: the model,
AS_SAVED = ("normalize", "precision")  # and how it was saved

STATIC_BATCH = 1024
LOCAL_BATCH = 256  # texts a batch in process, where the budget of tokens allows so many
# Batches at once in process: one is tokenized, or waits for Python, while the other is in the processor's hands.
LOCAL_SLOTS = 2


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


@dataclass(frozen=True)
class ModelSpec:
    """A caller's choice of model and settings, from which the model can be made again. Pickled without secrets.

    Attributes:
        model_name: see the module's docstring.
        embedding_dim: columns to keep, or None; for the lexical model the number of hashed features.
        api_base: where a hosted model is served, or None for the provider's own address.
        api_key: the provider's key, or None for its environment variable.
        embedder: a `dspy.Embedder` or callable that takes the place of `model_name`.
        settings: of the model, by name: `OWN_SETTINGS` and max_concurrency; only those that the caller gave.
        key_lost: True if there was a key that pickling left out.
        options: arguments of the provider's own, sent with each request.
        options_lost: the names of those that pickling left out.
        home: the folder that a relative `model_name` is meant from.
        saved: of the static model on the hub that this was recognised as, here or where a value function was learned:
            its name, its revision and how it was saved; None while nothing told.
    """

    model_name: str
    embedding_dim: int | None = None
    api_base: str | None = field(default=None, repr=False)  # may hold a user and password
    api_key: str | None = field(default=None, repr=False)
    embedder: Any = field(default=None, repr=False)  # a callable may show its key
    settings: Mapping[str, Any] = field(default_factory=dict)
    key_lost: bool = field(default=False, repr=False)
    options: Mapping[str, Any] | None = field(default=None, repr=False)
    options_lost: tuple[str, ...] = field(default=(), repr=False)
    home: str = field(default_factory=_here, repr=False, compare=False)
    saved: Mapping[str, str] | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "api_key": None, "api_base": hosted.public_address(self.api_base) or None}
        state["key_lost"] = self.key_lost or self.api_key is not None
        state["embedder"] = custom.without_secrets(self.embedder)
        if self.options is not None:
            state["options"] = hosted.public(self.options)
            state["options_lost"] = (*self.options_lost, *hosted.secrets(self.options))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"options": None, "options_lost": (), "home": _here(), "saved": None, **state})
        if not Path(self.home).is_dir():  # another machine
            self.__dict__["home"] = _here()

    @property
    def _folder(self) -> Path:
        return Path(self.home, self.model_name)

    def like(self, identity: Mapping[str, str] | None) -> "ModelSpec":
        """The same model with the settings that the model of `identity` had in process, where none were given.

        Raises:
            StateError: the model of `identity` was in the folder of this name, which is gone.
        """
        if identity is None or self.embedder is not None:
            return self
        self._refuse_lost_folder(identity)
        if identity.get("backend") == STATIC and identity.get("model") == self.model_name:
            saved = {name: identity[name] for name in (*THAT_NAME, *AS_SAVED) if name in identity}
            settings = {name: identity[name] for name in ("revision",) if name in identity}
            return replace(self, saved=saved, settings={**settings, **self.settings})
        if identity.get("backend") != LOCAL:
            return self
        theirs = {"precision": "float32", **identity}
        settings = {name: theirs[name] for name in THAT_CHANGE_VECTORS if name in theirs}
        return replace(self, settings={**settings, **self.settings})

    def _refuse_lost_folder(self, identity: Mapping[str, str]) -> None:
        name = identity.get("model")
        if "content" in identity and not self._folder.is_dir() and Path(self.model_name).name == name:
            raise StateError(
                f"this was fitted with a model in a folder named {shown(name)}, but there is no such folder here "
                f"({shown(str(self._folder))}); give model_name= the folder."
            )

    @property
    def is_routed(self) -> bool:
        """True if litellm is asked, so that the address may change with the environment."""
        if self.embedder is not None:
            return custom.is_route(self.embedder)
        return self.model_name.split("/")[0] in hosted.PROVIDERS and not self._folder.is_dir()

    def address(self) -> str | None:
        """The address that the model is asked at now; None for the provider's own, or for a model without any."""
        if self.embedder is not None:
            return custom.address_of(self.embedder)
        return hosted.address_of(self.model_name, self.api_base) if isinstance(self.model_name, str) else None

    def model(self) -> EmbeddingModel:
        """The model that this describes, at the address of this moment; see `model_at`."""
        return self.model_at(self.address())

    def model_at(self, address: str | None, instruction: str | None = None) -> EmbeddingModel:
        """The model that this describes, served at an address; no weights are loaded and no text is sent yet.

        The hub may be asked for two small files, to tell a static model that is not on this machine from others.

        Args:
            address: see `address`.
            instruction: that texts are sent with, for a model in process that repeats it in each window of a long one.

        Raises:
            InputError: a chat model, an unusable name, an embedder that cannot be called, or a setting that the
                model has not.
        """
        if self.embedder is not None:
            self._check_settings("an embedder of one's own")
            return _custom(self.embedder, self._slots(1), address)
        name = self.model_name
        if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME:
            raise InputError(f"model_name must be the name of an embedding model, but got {shown(name)}.")
        if name.strip().lower() == LEXICAL:
            self._check_settings("the lexical model")
            return _lexical(LEXICAL_DIM if self.embedding_dim is None else self.embedding_dim)
        if self._folder.is_dir():
            for setting in ("api_base", "api_key"):
                if getattr(self, setting) is not None:
                    raise InputError(
                        f"{setting} was given, but {name!r} is a folder, whose model runs here; leave it out."
                    )
            return self._in_process(instruction)
        refuse_chat_model(name)
        hosted.refuse_provider(name)
        hosted.check_address(self.api_base, self.api_key)
        if self.is_routed:
            return self._hosted(address)
        if self.api_base is not None:
            raise InputError(
                f"api_base was given, but {name!r} names no provider; put one first, for instance "
                f"'openai/{name}' for any server that speaks OpenAI's protocol."
            )
        return self._in_process(instruction)

    def _check_settings(self, kind: str) -> None:
        """Refuse a setting that would have no effect on this kind of model.

        Raises:
            InputError: names it, and the kind of model that has it.
        """
        if self.options is not None and kind != HOSTED:
            instead = "give them to dspy.Embedder" if self.embedder is not None else "leave them out"
            raise InputError(f"provider_options are sent with requests to a provider, but this is {kind}; {instead}.")
        for owner, names in OWN_SETTINGS.items():
            for name in names:
                if name in self.settings and name not in OWN_SETTINGS.get(kind, ()):
                    setting = f"{name}={shown(self.settings[name])}"
                    raise InputError(f"{setting} is a setting of {owner}, but this is {kind}; leave {name} out.")

    def _slots(self, default: int) -> int:
        return check_count(self.settings.get("max_concurrency", default), "max_concurrency", 1)

    def _in_process(self, instruction: str | None) -> EmbeddingModel:
        """A static model or one of sentence-transformers, from its folder or by its name on the hub."""
        folder, name, source, content = self._folder, self.model_name, self.model_name, {}
        given = {key: value for key, value in self.settings.items() if key in OWN_SETTINGS[IN_PROCESS]}
        for key, value in given.items():
            check_optional_string(value, key)
        saved: Mapping[str, str] | None = None
        if folder.is_dir():
            if not any((folder / file).exists() for file in SETTINGS_FILES):
                raise InputError(f"{name!r} holds no embedding model: neither config.json nor modules.json is in it.")
            name, source, content = Path(name).name, str(folder.resolve()), identity_of(folder)
            saved = saved_in(folder)  # after code and pipes among its files were refused
        elif _qwen3_columns(name)[1] is None:
            saved = self._saved_on_hub(given.get("revision"))
        if saved is not None:
            self._check_settings(STATIC_MODEL)
            whole = identity_of(folder, whole=True) if content else {}
            static = StaticEmbeddingModel(source, **given, content=whole.get("content", ""))
            # Version 0.1.0 read such a folder through sentence-transformers.
            former = {"model": name, **content, "backend": LOCAL, **static.identity} if content else None
            return _static(static, name, whole, saved, former, self._slots(1))
        self._check_settings(IN_PROCESS)
        model = LocalModel(source, instruction=instruction, **given, content=content.get("content", ""))
        identity = {"model": name, **content, "backend": LOCAL, **model.identity}
        former = {part: value for part, value in identity.items() if part != WEIGHTS}
        size, default_dim = _qwen3_columns(name)
        return EmbeddingModel(
            name=f"the model in {name!r}" if content else repr(name),
            identity=identity,
            embed=model,
            size=None if content else size,
            default_dim=default_dim,
            batch_size=LOCAL_BATCH,
            slots=self._slots(min(LOCAL_SLOTS, os.cpu_count() or 1)),
            measure=model.measure,
            former=former if former != identity else None,
            prefix=model.prefix if model.long_text == "mean" else "",
        )

    def _saved_on_hub(self, revision: str | None) -> Mapping[str, str] | None:
        """How the static model of this name was saved; remembered, so that a pickle knows it without the hub."""
        named = {"model": self.model_name, **({} if revision is None else {"revision": revision})}
        known = self.saved or {}
        if {name: known[name] for name in THAT_NAME if name in known} != named:
            found = saved_on_hub(self.model_name, revision)
            if found is None:
                return None
            known = self.__dict__["saved"] = {**found, **named}
        return {name: known[name] for name in AS_SAVED if name in known}

    def _hosted(self, address: str | None) -> EmbeddingModel:
        """A route of litellm."""
        self._check_settings(HOSTED)
        name, options, limits = self.model_name, self.options or {}, hosted.Limits(**self.settings)
        model = hosted.HostedModel(
            name, api_key=self.api_key, api_base=address, limits=limits, key_lost=self.key_lost, options=options
        )
        size, default_dim = _qwen3_columns(name)
        n_columns = options.get("dimensions")
        return EmbeddingModel(
            name=f"the route {name!r}",
            identity={"model": name, "backend": "litellm", **hosted.as_entry(options)},
            embed=self._without_its_options if self.options_lost else model,
            endpoint=hosted.public_address(address),
            size=n_columns if isinstance(n_columns, int) else size,
            default_dim=default_dim,
            batch_size=hosted.batch_size(name),
            slots=limits.max_concurrency,
            width=limits.max_concurrency,
            is_served=True,
            usage=lambda: model.usage,
        )

    def _without_its_options(self, texts: Sequence[str]) -> Any:
        names = ", ".join(self.options_lost)
        raise EmbeddingError(
            f"the route {self.model_name!r} was given secrets in provider_options ({names}), which do not travel to "
            "another process or a file; give them to a new learner there."
        )


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


def _lexical(n_features: int) -> EmbeddingModel:
    model = LexicalModel(n_features)
    return EmbeddingModel(
        name=f"the lexical model ({n_features} features)",
        identity={"model": LEXICAL, "version": "2", "features": str(n_features)},
        embed=model,
        size=n_features,
        default_dim=n_features,
        batch_size=256,
        keep_on_disk=False,  # hashing a text is as cheap as reading its vector
        keep_with_fit=False,
    )


def _static(
    model: StaticEmbeddingModel,
    name: str,
    content: Mapping[str, str],
    saved: Mapping[str, str],
    former: Mapping[str, str] | None,
    n_slots: int,
) -> EmbeddingModel:
    return EmbeddingModel(
        name=f"the static model {f'in {name!r}' if content else repr(name)}",
        identity={"model": name, **content, "backend": STATIC, **saved, **model.identity},
        embed=model,
        batch_size=STATIC_BATCH,
        # Measured with 256 columns: .34 ms to compute one text and .04 to read it; of 256 and 4,096 texts 80 and 57 µs
        # each to compute, 8 and 9 to read, and writing costs nothing that shows. Reading needs no model in memory.
        keep_on_disk=True,
        slots=n_slots,
        measure=model.measure,
        former=former,
        zero_is_blank=True,
    )


def _qwen3_columns(model_name: str) -> tuple[int | None, int | None]:
    """Columns of a full vector of Qwen3-Embedding, and those kept by default; None for another model."""
    name = model_name.lower()
    match = re.search(r"qwen3-embedding[-:_](0\.6b|4b|8b)", name)
    return QWEN3_SIZES[match[1]] if match else None, QWEN3_DIM if "qwen3-embedding" in name else None


def _custom(embedder: Any, n_slots: int, address: str | None) -> EmbeddingModel:
    name, model = custom.name_of(embedder), custom.model_of(embedder)
    if isinstance(model, Precomputed):
        return _precomputed(model)
    if isinstance(model, str):
        refuse_chat_model(model)
        hosted.refuse_provider(model)
    identity, former = custom.identity_of(embedder), custom.former_identity(embedder)
    return EmbeddingModel(
        name=f"the embedder {name!r}" if name else "the embedder",
        identity=identity,
        embed=embedder,
        endpoint=hosted.public_address(address),
        batch_size=embedder.batch_size if isinstance(embedder, dspy.Embedder) else 64,
        keep_on_disk=name is not None,
        slots=n_slots,
        former=former if former != identity else None,
        is_routed=custom.is_route(embedder),
        sent=custom.sent_to(embedder, address),
        secrets=custom.secret_strings_of(embedder),
    )


def _precomputed(table: Precomputed) -> EmbeddingModel:
    return EmbeddingModel(
        name=f"the table {table.name!r}",
        identity={"model": table.name, "backend": "precomputed", "content": table.digest},
        embed=table,
        size=table.size,
        batch_size=4096,
        keep_on_disk=False,  # it is looked up as fast as in a file
        probe_texts=TABLE_PROBE_TEXTS,
        takes_instruction=False,
    )
