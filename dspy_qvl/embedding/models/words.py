"""The English words that the lexical model treats differently: function words and negations.

The same text gives the same vector anywhere and in any version; so the list of function words stands here, and is not
taken from a library that may change it.
"""

# English words that say little by themselves; "no", "not", "never" and the like say much, and are not among them.
# The single letters remain of contractions.
FUNCTION_WORDS = frozenset(
    """
    a about above across after afterwards again against all almost alone along already also although always am among
    amongst an and another any anyhow anyone anything anyway anywhere are around as at back be became because become
    becomes becoming been before beforehand behind being below beside besides between beyond both but by can could d
    did do does doing done down due during each eight either eleven else elsewhere enough even ever every everyone
    everything everywhere except few fifteen fifty first five for former formerly forty found four from full further
    get give go had has have having he he's hence her here hereafter hereby herein hereupon hers herself him himself
    his how however i i'd i'll i'm i've if in indeed into is it it's its itself keep last latter latterly least less
    ll m made many may me meanwhile might mine more moreover most mostly much must my myself name namely
    nevertheless next nine noone now of off often on once one only onto or other others otherwise our ours ourselves
    out over own part per perhaps please put rather re s same see seem seemed seeming seems several shall she she's
    should since six sixty so some somehow someone something sometime sometimes somewhere still such t take ten than
    that that's the their theirs them themselves then thence there there's thereafter thereby therefore therein
    thereupon these they they're they've third this those though three through throughout thru thus to together too
    toward towards twelve twenty two un under until up upon us ve very via was we we're we've well were what
    whatever when whence whenever where whereafter whereas whereby wherein whereupon wherever whether which while
    whither who whoever whole whom whose why will with within would yet you you'll you're you've your yours yourself
    yourselves
    """.split()
)
PUNCTUATION = '.,!?;:()"'
NEGATIONS = frozenset("not no never nothing neither nor without hardly barely cannot".split())
APOSTROPHES = "'’"


class Kind:
    """Properties of a word as bits, so that a whole batch of words is tested at once."""

    FUNCTION = 1
    NEGATION = 2  # negates the words after it
    T = 4  # negates the words after it where an apostrophe precedes it, as in "don't"
    APOSTROPHE = 8
    COUNTED = 16  # letters and digits: one step of the way on which a negation holds
    NEGATABLE = 32  # letters, and no function word
    LONG = 64  # two characters at least, so no punctuation mark


_LISTED = {
    **{word: Kind.FUNCTION | Kind.COUNTED * word.isalnum() for word in FUNCTION_WORDS},
    **dict.fromkeys(NEGATIONS, Kind.NEGATION | Kind.COUNTED | Kind.NEGATABLE),
    **dict.fromkeys(APOSTROPHES, Kind.APOSTROPHE),
    "t": Kind.FUNCTION | Kind.T | Kind.COUNTED,
}


def kind_of(word: str) -> int:
    """The `Kind` bits of a word or punctuation mark."""
    kind = _LISTED.get(word)
    if kind is None:
        kind = Kind.COUNTED | Kind.NEGATABLE if word.isalpha() else Kind.COUNTED * word.isalnum()
    return kind | Kind.LONG if len(word) > 1 else kind
