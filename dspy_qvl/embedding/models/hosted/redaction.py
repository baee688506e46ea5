"""Messages of others, as they may be shown: short, on one line, and without anything secret.

    "401: wrong key Bearer sk-4f… (c2stNGY…)"  ─►  "401: wrong key Bearer <key> (<key>)"

Servers and clients repeat what they were sent, as it was or encoded: a key is taken out in each of its forms. Only the
beginning of a message is looked at, since a server may send one of any length.
"""

import base64
import json
import os
import re
from collections.abc import Sequence
from urllib.parse import quote, quote_plus

LONGEST_REASON = 300  # characters that are shown
LONGEST_READ = 20_000  # characters that are looked at
ENDS = " \n\t'\"<>{}[],"  # what ends a word
SHORTEST_SECRET = 4  # characters; what is shorter is in many words
SHORTEST_ENCODED = 8  # of a secret whose encoded forms are looked for

SECRET_VARIABLE = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.I)
PERCENT = re.compile("%[0-9A-F]{2}")


def reason(text: str, secrets: Sequence[str] = ()) -> str:
    """The beginning of a message, on one line, without secrets."""
    line = " ".join(without_secrets(text, secrets).split()).rstrip(".")
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"


def without_secrets(text: str, secrets: Sequence[str] = ()) -> str:
    """A message without these secrets, the values of secret environment variables, and logins of addresses.

    Of a message longer than `LONGEST_READ` the beginning, to the end of a word.
    """
    if len(text) > LONGEST_READ:
        text = text[:LONGEST_READ]
        text = f"{text[: max(map(text.rfind, ENDS))]}…"  # half a key would not be known as one
    known = {value for name, value in os.environ.items() if SECRET_VARIABLE.search(name) and len(value) >= 8}
    known |= {value for value in secrets if len(value) >= SHORTEST_SECRET}
    for form in sorted({form for value in known for form in forms(value)}, key=len, reverse=True):
        text = text.replace(form, "<key>")
    text = re.sub(r"(?i)\bbearer\s+[^\s'\",}]+", "Bearer <key>", text)
    text = re.sub(r"(?i)([?&](?:api_?)?(?:key|token)=)[^&\s'\"]+", r"\1<key>", text)
    return re.sub(r"://[^/\s@]+@", "://<login>@", text)


def forms(secret: str) -> set[str]:
    """A secret as it is, and as it may come back: in JSON, percent-encoded, in Base64 alone or within a longer text."""
    if len(secret) < SHORTEST_ENCODED:
        return {secret}
    raw = secret.encode("utf-8", "surrogatepass")
    cores = set()
    for n_before in range(3):  # three bytes become four characters: how they fall depends on what comes before
        coded = base64.b64encode(bytes(n_before) + raw).decode().rstrip("=")
        is_shared = (n_before + len(raw)) % 3 != 0  # the last character, with what comes after
        core = coded[(0, 2, 3)[n_before] : len(coded) - is_shared]
        cores |= {core, core.replace("+", "-").replace("/", "_")}
    percent = {quote(form, safe="") for form in cores} | {quote(raw, safe=""), quote_plus(raw)}
    lower = {PERCENT.sub(lambda match: match[0].lower(), form) for form in percent}
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], *cores, *percent, *lower}
