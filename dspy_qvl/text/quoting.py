r"""Quotes a stranger's text: on one line, and without anything that could pass for structure.

Feedback is copied into prompts and printed. What a language model or a terminal could take for an order is broken, so
that a reader sees both what was there and that it was broken:

    control and bidi characters, hidden ones    \x1b  \u202e  \U000e0041         as their escapes
    chat tokens                                 <|im_end|>  </s>  <<SYS>>       <·|im_end|>  <·/s>  <·<SYS>>
                                                [INST]                          [·INST]
    tags of roles                               <system>  </assistant>          <·system>  <·/assistant>
    markers of DSPy                             [[ ## answer ## ]]              [·[ ## answer ## ]]
    headings of prompts, fences                 ### Response  ```               #·#·# Response  `·``
    a role and a colon where a line begins      System: …                       System·: …
    the quotation mark around it all            "                               \"

Everything else is unchanged: letters of any script, emoji, accents, code. It cannot make a model deaf to what a text
says in plain words.
"""

import re

BREAK = "·"

# Invisible, or moving what stands around them; by their numbers, since Python's tables change with its version. The
# joiners that emoji and many scripts need stay between letters beyond ASCII, a variation selector after no other one,
# and the tags in the three flags of Unicode that have them.
FLAGS = "|".join(
    "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in region) + "\U000e007f"
    for region in ("gbeng", "gbsct", "gbwls")
)
SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
HIDDEN = re.compile(
    f"(?P<flag>{FLAGS})"
    "|[\0-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff]"
    "|(?<![^\0-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\0-\x7f])"
    f"|(?<=[{SELECTORS}])[{SELECTORS}]"
)

ROLES = "system|user|assistant|human|ai|developer|instructions?"
TAGS = (
    rf"{ROLES}|tools?|s|bos|eos|sep|pad|unk|think|thinking|response|completed|invoke|extra_id_\d+|side_info|curr_\w{{1,20}}"
    r"|(?:start|end)_of_\w{1,20}|(?:tool|function)_(?:call|result|response|use)s?"
)
MARKER = re.compile(
    r"[<\[`#](?:"
    r"(?<=<)(?=[|｜][^<>\s]{1,80}[|｜]>"  # <|im_start|>, <｜User｜>
    r"|<[/\w-]{1,80}>>"  # <<SYS>>, and what DSPy keeps images in
    rf"|/?(?:{TAGS})(?:\s[^<>]{{0,200}})?/?>)"
    r"|(?<=\[)(?=\[\s?##|/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|BOS|EOS)\])"
    r"|(?<=`)(?=``)"
    rf"|(?<=#)(?=#{{1,5}}\s?(?:{ROLES}|input|response|output|prompt)\b))",
    re.IGNORECASE,
)
SPEAKER = re.compile(
    rf"^([\W_]{{0,20}}(?:{ROLES})(?:\s(?:prompt|message))?)(?=[^\w{BREAK}]{{0,4}}[:：])", re.IGNORECASE
)


def plain(text: str, limit: int) -> str:
    """The first `limit` characters of a text, on one line, what could pass for structure broken."""
    lines: list[str] = []
    n_left = limit
    for row in text.splitlines():
        if n_left < -1:  # the rest will be cut
            break
        if words := row.split():
            lines.append(SPEAKER.sub(rf"\1{BREAK}", " ".join(words)))
            n_left -= len(lines[-1]) + 1
    line = " ".join(lines)
    cut = line if len(line) <= limit else f"{line[:limit].rstrip()}…"
    shown = cut if cut.isascii() and cut.isprintable() else HIDDEN.sub(_escaped, cut)
    return MARKER.sub(rf"\g<0>{BREAK}", shown)


def quoted(text: str, limit: int) -> str:
    """The same between quotation marks that nothing in it closes."""
    return '"' + re.sub(r'(?<!\\)"', r"\"", plain(text, limit)) + '"'


def _escaped(hidden: re.Match[str]) -> str:
    if hidden["flag"]:
        return hidden[0]
    code = ord(hidden[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
