"""Signs and English words that carry numbers, logic, units, quotation and structure.

Words are in lower case. What is in here is a choice: words are listed whose exchange changes what
is claimed ("and" / "or", "all" / "some"), not those that only join sentences ("however",
"although", "because") or say how many without a number ("several"); a user adds their own.
"""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CARDINALS: Final = _words(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    hundred thousand million billion trillion
    """
)
NUMBERS: Final = CARDINALS | _words(
    """
    hundreds thousands millions billions dozen dozens half halves quarter quarters
    once twice thrice double triple single pair couple
    first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth
    fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth hundredth
    """
)

_AUXILIARIES: Final = _words(
    "is are was were do does did has have had can could must need might should would"
)
# "n't": as a tokenizer may cut it off.
CONTRACTIONS: Final = _words("can't won't shan't ain't n't") | frozenset(
    f"{word}n't" for word in _AUXILIARIES - {"can"}
)
NEGATION: Final = CONTRACTIONS | _words(
    """
    no not non none nor neither never nobody nothing nowhere nope cannot without lack lacks lacking
    absent missing hardly barely yes true false
    and or but if unless only all any every each some both either whether always
    anyone anybody anything anywhere everyone everybody everything everywhere
    someone somebody something somewhere
    except excluding more less fewer most least
    """
)

# Their own words, wherever they stand.
UNITS: Final = _words(
    """
    px mm cm km kg lb lbs mg ml cl ms kb mb gb tb hz khz mhz ghz kwh mph kmh kph rpm dpi psi
    usd eur gbp percent percentage degree degrees celsius fahrenheit pixel pixels
    millimeter millimeters millimetre millimetres centimeter centimeters centimetre centimetres
    meter meters metre metres kilometer kilometers kilometre kilometres inch inches mile miles
    milligram milligrams gram grams kilogram kilograms ounce ounces liter liters litre litres
    dollar dollars cent cents euro euros hours minutes days weeks months years
    """
)
# Ordinary words or letters, units only behind a number.
UNITS_BEHIND_NUMBERS: Final = UNITS | _words(
    """
    m s h g l t k b c f w v a j n in ft yd oz min sec hr hrs am pm kw mw bn mn
    hour minute second seconds day week month year decade decades century centuries
    foot feet yard yards acre acres pound pounds ton tons tonne tonnes times point points
    """
)
UNIT_SIGNS: Final = "%‰°\N{PRIME}\N{DOUBLE PRIME}\N{FULLWIDTH PERCENT SIGN}"  # and all currencies

# Words of their own that guarded words, or phrases, begin with: too common to be guarded for that.
EVERYDAY: Final = _AUXILIARIES | _words(
    """
    a al am an as at bar bare be bill bot by coup day de doll el eve ever few fir for fort hard he
    her his hour how i in it la le lit lite me met mill minute miss mon month now of on pa per pi
    quart sin sing so tent the there this thou to trip us we week who wit with won year you
    """
)

QUOTES: Final = {
    '"': '"',
    "“": "”",
    "„": "“”",
    "«": "»",
    "\u2039": "\u203a",  # single angle quotation marks
    "「": "」",
    "『": "』",
    "`": "`",
}
APOSTROPHES: Final = {"'": "'", "\N{LEFT SINGLE QUOTATION MARK}": "’"}
BRACKETS: Final = {"}": "{", "]": "[", ">": "<", ")": "(#"}

MARKUP: Final = "{}[]<>|=\\/_#*`~^@&"
# Signs that make a run without blanks a path, an address, a key and its value.
GLUE: Final = "\\/_=#@<"
