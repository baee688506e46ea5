"""An offline stand-in for a language model; it is not one.

`ScriptedLM` plays the support desk of a web shop ("question -> reply") in examples, notebooks and tests: it puts a
reply together out of parts, and the prompt (instructions, demos, hints, temperature) decides which. When an optimizer
asks it for an instruction, it names the traits it has read about. An answer depends on nothing but the prompt, the
temperature, the rollout and the seed.

    dspy.configure(lm=ScriptedLM())
    dspy.Predict("question -> reply")(question="Where is my parcel?").reply
"""

import ast
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, TextPart, Usage


@dataclass(frozen=True)
class Part:
    """One ingredient of a reply."""

    good: bool
    habit: float  # how likely it is when the prompt speaks neither for nor against it
    idea: str  # the pattern by which an instruction or a rater speaks of it
    mark: str  # the pattern by which a reply shows it
    rule: str  # how an instruction asks for it, or warns of it
    wordings: tuple[str, ...]


# In the order in which they appear in a reply; {topic} and {step} come from TOPICS.
# fmt: off
PARTS = {
    "thanks": Part(True, 0.4, r"\bthank|polite|courte|friendly", r"\bthanks?\b", "Be polite and thank the customer.", (
        "Thank you for telling us.", "Thanks for writing in.", "Many thanks for your message.")),
    "flattery": Part(False, 0.38, r"flatter|gush|substance", r"wonderful|amazing|delight|treasure", "No flattery.", (
        "You are a wonderful customer and we treasure you.", "What an amazing message, it delights our whole team!")),
    "apology": Part(True, 0.4, r"apolog|sorry|regret", r"sorry|apolog", "Apologise where the shop is at fault.", (
        "I am sorry about the trouble with {topic}.", "We apologise for this.", "Sorry for the bother with {topic}.")),
    "serious": Part(True, 0.3, r"serious|\bside\b", r"understand|serious|should not have h", "Take it seriously.", (
        "This should not have happened.", "I understand how annoying that is.", "We take {topic} seriously.")),
    "blame": Part(False, 0.35, r"blam|accus|rude|polite", r"you should have|own fault", "Never blame the customer.", (
        "You should have read the terms first.", "That is rather your own fault.")),
    "vague": Part(False, 0.65, r"vague|concrete|specific", r"look into|due course|we will see", "Do not be vague.", (
        "We will look into it at some point.", "It will be handled in due course.", "We will see what can be done.")),
    "step": Part(
        True, 0.4, r"concrete|\bstep|happens next|thing asked", r"\bI(?:'ve|'ll| have| will)\b|\bwe(?:'ve| have)\b",
        "Name one concrete step about the thing asked.", (
            "I have {step}.", "To put {topic} right, I have {step}.", "Here is what I did: I have {step}.")),
    "deadline": Part(
        True, 0.25, r"(?:and|by|not|says?) when\b|deadline", r"\btoday|tomorrow|within|\d+ \w* ?days", "Say by when.", (
            "You will hear from me by tomorrow noon.", "That is settled within 2 working days.", "It is done today.")),
    "padding": Part(False, 0.4, r"\bshort|concise|padd|wordy|filler", r"be advised|kindly note", "Keep it short.", (
        "Please be advised that at this juncture we receive a large number of messages of many different kinds.",
        "Kindly note that every matter is different and that many departments may have to be consulted about it.")),
    "offer": Part(True, 0.4, r"offer|more help", r"anything else|just reply|happy to help", "Offer more help.", (
        "Just reply here if anything else comes up.", "I am happy to help further.", "Anything else? Just write.")),
}
# fmt: on

TOPICS = (  # (pattern in the question, the thing asked about, the concrete step)
    (r"twice|double", "the double charge", "refunded the second payment"),
    (r"refund|money", "your refund", "released your refund to the card you paid with"),
    (r"broke|crack|damag|shatter|chip", "the damaged item", "sent a replacement to your address"),
    (r"size|small|large|fit\b", "the size", "reserved the other size and mailed you a free return label"),
    (r"wrong|instead|colou?r", "the mix-up", "sent the right item and booked a pick-up for the wrong one"),
    (r"log ?in|password|account", "your account", "reset the lock on your account and mailed you a new link"),
    (r"invoice|receipt|\bvat\b", "the invoice", "mailed you the invoice as a PDF"),
    (r"cancel", "the cancellation", "stopped the order before it leaves the warehouse"),
    (r"address|moved", "the address", "changed the delivery address on the order"),
    (r"voucher|discount|code|coupon", "the discount code", "added the discount to your order by hand"),
    (r"parcel|deliver|\blate|track|arriv|order", "your parcel", "opened a trace with the carrier for your parcel"),
    (r"", "your request", "opened a case for it in my own name"),
)

WANTED = re.compile(r"`(?:\[\[ ## )?(\w+)(?: ## \]\])?`(?: \(must be formatted as a valid Python (.+?)\))?(?=, |\.)")
FIELD = re.compile(r"\[\[ ## (\w+) ## \]\]\n(.*?)(?=\n+\[\[ ## |\n+Respond with |\Z)", re.S)
JUDGED = re.compile(r"(?:because|rated|rater|reason|feedback)\b[^}\n]{0,300}", re.I)  # sentences that judge a reply
Draw = Callable[[str], float]
_rollout: ContextVar[tuple[Any, Iterator[int]]] = ContextVar("rollout")  # of this call: its id, its completions


def named(text: str, pattern: str) -> set[str]:
    """The parts whose `idea` or `mark` (the pattern's name) occurs in the text."""
    return {name for name, part in PARTS.items() if re.search(getattr(part, pattern), text, re.I)}


def quality(reply: str) -> float:
    """The stand-in's own score of a reply, in (0, 1): good parts raise it, bad ones lower it."""
    found = named(reply, "mark")
    return 1 / (1 + math.exp(1.0 - sum(1 if PARTS[name].good else -1 for name in found)))


def numbers(*key: object) -> Draw:
    """A function from names to numbers in [0, 1) that depend on nothing but the key and the name."""
    digest = blake2b(repr(key).encode()).digest()
    return lambda name: int.from_bytes(blake2b(name.encode(), key=digest, digest_size=6).digest(), "big") / 2**48


def choice(number: float, options: Sequence[str]) -> str:
    """One of the options."""
    return options[int(number * len(options))]


def write_reply(question: str, instructions: str, demos: list[str], temperature: float, draw: Draw) -> str:
    """A reply to the customer: habits, drawn towards what the demos show and moved by what the instructions name."""
    topic, step = next(rest for pattern, *rest in TOPICS if re.search(pattern, question, re.I))
    asked, shown = named(instructions, "idea"), [named(demo, "mark") for demo in demos]
    sentences = []
    for name, part in PARTS.items():
        chance = (part.habit + sum(name in marks for marks in shown)) / (1 + len(shown))
        if name in asked:
            chance += 0.45 if part.good else -0.45
        # At temperature 1 a part appears with this chance; the colder, the more only what is likelier than not.
        if chance + max(temperature, 0.4) * (draw(name) - 0.5) >= 0.5:
            sentences.append(choice(draw(name + " wording"), part.wordings).format(topic=topic, step=step))
    return " ".join(sentences) or "Noted."


def read_traits(fields: dict[str, str], temperature: float, draw: Draw) -> list[str]:
    """The parts that a prompt speaks of as good or bad, or shows in good or bad replies; a warm reader misses some."""
    found: set[str] = set()
    for name, text in fields.items():
        if re.search(r"instruction|tip|description|observations", name):
            found |= named(text.rsplit("Instruction #", 1)[-1], "idea")  # COPRO lists its best attempt last
        for sentence in JUDGED.findall(text) if name != "program_code" else ():  # DSPy's own source
            found |= named(sentence, "idea") | named(sentence, "mark")
        if name in ("better_program_outputs", "worse_program_outputs", "task_demos", "examples_text"):
            found |= {part for part in named(text, "mark") if PARTS[part].good != name.startswith("worse")}
    return [name for name in PARTS if name in found and (temperature == 0 or draw(name + " read") < 0.8)]


def write_instruction(traits: list[str], draw: Draw) -> str:
    """An instruction that names the traits and tries one more; without traits, one to three by lot."""
    tried = {choice(draw(f"try {i}"), list(PARTS)) for i in range(1 if traits else 3)}
    rules = [part.rule for name, part in PARTS.items() if name in tried or name in traits]
    return " ".join(["Answer the customer of a web shop.", *rules])


def fill(schema: dict[str, Any], text: str, reads: float, keys: list[str], defs: dict[str, Any]) -> Any:
    """A value that a JSON schema allows: the text for a string, `reads` (in 0..1) for a number."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rsplit("/", 1)[-1]]
    properties = schema.get("properties") or {key: {"type": "string"} for key in keys}
    if "enum" in schema:
        return schema["enum"][int(reads * len(schema["enum"]))]
    if schema.get("title", "").endswith("Probabilities"):  # of ordered options: a bell around `reads`; sums to one
        bell = [math.exp(-8 * (reads - i / max(1, len(properties) - 1)) ** 2) for i in range(len(properties))]
        return {name: weight / sum(bell) for name, weight in zip(properties, bell, strict=True)}
    if schema.get("type") == "object":
        return {name: fill(inner, text, reads, keys, defs) for name, inner in properties.items()}
    if schema.get("type") == "array":
        return [fill(schema.get("items", {}), text, reads, keys, defs)]
    return {"number": reads, "integer": int(10 * reads), "boolean": reads >= 0.5}.get(schema.get("type", ""), text)


def schema_of(name: str, kind: str, system: str) -> dict[str, Any]:
    """The JSON schema of an output field: of its Python type, or from the note that DSPy's adapters print about it."""
    if kind.startswith("Literal["):
        return {"enum": list(ast.literal_eval(kind.removeprefix("Literal")))}
    if kind in ("bool", "int", "float"):
        return {"type": {"bool": "boolean", "int": "integer", "float": "number"}[kind]}
    note = re.search(r"\{" + name + r"\} +# note: [^{\n]*(\{.*\})", system)
    printed = note.group(1) if note else '{"type": "string"}'
    return dict(json.loads(printed.replace('\\"', '"') if '{\\"' in printed else printed))


class ScriptedEngine:
    """A custom engine as DSPy 3.4 wants it: `complete(Request) -> Response`, and a state that can be saved."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def complete(self, request: Request) -> Response:
        """Answer every output field that the last message asks for, in the format it asks for."""
        texts = [message.text or "" for message in request.messages]
        system, prompt = str(request.system or ""), texts[-1]
        temperature = request.config.temperature or 0.0
        rollout, completions = _rollout.get((None, count()))
        draw = numbers(self.seed, system, texts, (rollout, next(completions)) if temperature else None)

        instructions = system.rpartition("your objective is:")[2]
        demos = [message.text or "" for message in request.messages if message.role == "assistant"]
        demos += re.findall(r'"reply": *"((?:[^"\\]|\\.)*)"', instructions)
        fields, wanted = dict(FIELD.findall(prompt)), prompt.rpartition("Respond with ")[2]
        traits = read_traits(fields or {"instruction": prompt}, temperature, draw)

        def answer(name: str, kind: str) -> Any:
            if name == "reply":
                hints = " ".join(text for field, text in fields.items() if field != "question")
                question = fields.get("question", prompt)
                return write_reply(question, f"{instructions} {hints}", demos, temperature, draw)
            if name.startswith("proposed_prefix"):  # COPRO wants one beside the instruction
                return "Reply:"
            text = " ".join(["Customers of a web shop ask for help.", *(PARTS[trait].rule for trait in traits)])
            if re.search(r"instruction|rules|advice|discussion", name):
                text = write_instruction(traits, draw)
            if kind in ("", "str"):
                return text
            schema = schema_of(name, kind, system)
            reads = 0.98 * quality(" ".join(fields.values())) + 0.01 * draw(name)
            keys = re.findall(r'"([^"]+)"', fields.get("module_names", ""))
            return fill(schema, text, reads, keys, schema.get("$defs", {}))

        values = {name: answer(name, kind) for name, kind in WANTED.findall(wanted) if name != "completed"}
        if not values:  # a plain string: to be answered in fences if it shows some
            text = f"```\n{write_instruction(traits, draw)}\n```" if "```" in prompt else answer("reply", "str")
        elif "JSON object" in wanted:
            text = json.dumps(values)
        else:
            printed = {name: json.dumps(v) if isinstance(v, dict | list) else v for name, v in values.items()}
            printed["completed"] = ""
            text = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in printed.items())
        spent, made = len(" ".join([system, *texts]).split()), len(text.split())  # words stand in for tokens
        usage = Usage(input_tokens=spent, output_tokens=made, total_tokens=spent + made)
        message = Message.assistant([TextPart(text)])
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

    def dump_state(self) -> dict[str, Any]:
        """The state that `load_state` restores."""
        return {"seed": self.seed}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "ScriptedEngine":
        """Restore an engine that was saved."""
        return cls(**state)


class AsyncScriptedEngine(ScriptedEngine):
    """The same answers for `acall`."""

    async def complete(self, request: Request) -> Response:
        """The answer of the engine that does not wait."""
        return super().complete(request)


class ScriptedLM(dspy.LM):
    """An LM for DSPy programs and optimizers that costs nothing, needs no network, and always says the same."""

    def __init__(self, model: str | None = None, *, seed: int = 0, cache: bool = False, **kwargs: Any) -> None:
        engines = {"engine": ScriptedEngine(seed), "async_engine": AsyncScriptedEngine(seed)}
        super().__init__(model or f"scripted/support-desk-{seed}", cache=cache, **(engines | kwargs))

    def __deepcopy__(self, memo: dict[int, Any]) -> "ScriptedLM":
        # Optimizers copy programs hundreds of times; DSPy would copy the whole history each time.
        return self.copy()

    @contextmanager
    def _rolling(self, kwargs: dict[str, Any]) -> Iterator[None]:
        # DSPy keeps rollout_id and n to itself: an engine is given the same request n times.
        token = _rollout.set(({**self.kwargs, **kwargs}.get("rollout_id"), count()))
        try:
            yield
        finally:
            _rollout.reset(token)

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """The completions, as from any LM."""
        with self._rolling(kwargs):
            return super().__call__(prompt, messages=messages, **kwargs)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """The completions, as from any LM."""
        with self._rolling(kwargs):
            return await super().acall(prompt, messages=messages, **kwargs)
