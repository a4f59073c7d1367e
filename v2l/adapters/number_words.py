"""Numbers, fractions and units of time in words: English, German, French and Spanish, in the form of `time_words`."""

from __future__ import annotations

from functools import cache

from v2l.adapters.time_words import listed

UNITS = {
    1: "s, sec, secs, second, seconds, sek, sekunde, sekunden, seconde, secondes, seg, segs, segundo, segundos",
    60: "m, min, mins, mn, minute, minutes, minuten, minuto, minutos",
    3600: "h, hr, hrs, hour, hours, std, stunde, stunden, heure, heures, hora, horas",
}
"""Names of units of time, by their seconds."""
UNIT_SECONDS = {name: seconds for seconds, names in UNITS.items() for name in listed(names)}
"""Seconds of a unit of time, by its name."""

_ONES = {
    "en": """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
        seventeen
        eighteen nineteen""",
    "de": """null eins zwei drei vier funf sechs sieben acht neun zehn elf zwolf dreizehn vierzehn funfzehn sechzehn
        siebzehn
        achtzehn neunzehn""",
    "fr": """zero un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix_sept
        dix_huit
        dix_neuf""",
    "es": """cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciseis
        diecisiete
        dieciocho diecinueve""",
}
_TENS = {
    "en": "twenty thirty forty fifty sixty seventy eighty ninety",
    "de": "zwanzig dreissig vierzig funfzig sechzig siebzig achtzig neunzig",
    "fr": "vingt trente quarante cinquante soixante septante quatre_vingt nonante",
    "es": "veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
}
ONE = "a, an, one, ein, eine, einer, einem, une, un, uno, una"
"""Articles and words for one, which are numbers before a unit only."""

HALF = "half a, half an, half, halbe, halben, demi, eine halbe, einer halben, une demi, medio, media"
"""Words for a half, which are numbers before a unit only."""

_OTHERS = {
    "a couple of": 2.0,
    **dict.fromkeys(["one and a half", "a and a half", "eineinhalb", "anderthalb", "einer und einer halben"], 1.5),
    **dict.fromkeys(["two and a half", "zweieinhalb"], 2.5),
    **dict.fromkeys(["hundred", "a hundred", "one hundred", "hundert", "einhundert", "cent", "cien"], 100.0),
    "quatre vingts": 80.0,
    "veintiun": 21.0,
}
ORDINALS = {
    2: "second, zweite, zweiten, zweiter, deuxieme, seconde, segundo, segunda",
    3: "third, dritte, dritten, dritter, troisieme, tercer, tercero, tercera",
    4: "fourth, vierte, vierten, quatrieme, cuarto, cuarta",
    5: "fifth, funfte, funften, cinquieme, quinto, quinta",
    6: "sixth, sechste, sechsten, sixieme, sexto, sexta",
    7: "seventh, siebte, siebten, septieme, septimo, septima",
    8: "eighth, achte, achten, huitieme, octavo, octava",
    9: "ninth, neunte, neunten, neuvieme, noveno, novena",
    10: "tenth, zehnte, zehnten, dixieme, decimo, decima",
}
"""Ordinal numbers in words, which count minutes and seconds. First is in PHRASES."""

QUARTERS = {
    15: "a quarter of an hour, quarter of an hour, einer viertelstunde, un quart d heure, "
    "un cuarto de hora, cuarto de hora",
    45: "three quarters of an hour, einer dreiviertelstunde, trois quarts d heure, tres cuartos de hora",
}
"""Parts of an hour in words, by their minutes."""

FRACTIONS = {
    "a quarter": 0.25,
    "one quarter": 0.25,
    "a third": 1 / 3,
    "one third": 1 / 3,
    "two thirds": 2 / 3,
    "three quarters": 0.75,
    "einem viertel": 0.25,
    "einem drittel": 1 / 3,
    "zwei dritteln": 2 / 3,
    "drei vierteln": 0.75,
    "un quart": 0.25,
    "un tiers": 1 / 3,
    "au tiers": 1 / 3,
    "deux tiers": 2 / 3,
    "trois quarts": 0.75,
    "un cuarto": 0.25,
    "un tercio": 1 / 3,
    "dos tercios": 2 / 3,
    "tres cuartos": 0.75,
}
"""Parts of a video in words."""

PARTS = {"half": 0.5, "halfte": 0.5, "moitie": 0.5, "mitad": 0.5, "third": 1 / 3, "drittel": 1 / 3, "tiers": 1 / 3}
PARTS |= {"tercio": 1 / 3, "quarter": 0.25, "viertel": 0.25, "quart": 0.25, "cuarto": 0.25}
"""Parts that a video is divided into, as in "the first half"."""


@cache
def number_words() -> dict[str, float]:
    """Return the numbers from 0 to 100 by their words in the four languages."""
    words: dict[str, float] = {}
    for language, text in _ONES.items():
        ones = [_spaced(word) for word in text.split()]
        words |= {word: float(value) for value, word in enumerate(ones)}
        for number, tens in enumerate(map(_spaced, _TENS[language].split()), 2):
            words[tens] = 10.0 * number
            for one in range(1, 20 if tens in ("soixante", "quatre vingt") else 10):
                words[_joined(language, tens, ones[one])] = 10.0 * number + one
    words |= {f"veinti{word}": 20.0 + value for value, word in enumerate(_ONES["es"].split()[:10]) if value}
    words |= {f"{word}einhalb": value + 0.5 for word, value in words.items() if word in _ONES["de"].split()}
    return {word: value for word, value in words.items() if word not in listed(ONE)} | _OTHERS


def _spaced(word: str) -> str:
    return word.replace("_", " ")


def _joined(language: str, tens: str, one: str) -> str:
    """Return the words of a number above twenty, from its tens and the rest."""
    if language == "de":
        return f"{'ein' if one == 'eins' else one}und{tens}"
    if language == "fr":
        return f"{tens} et {one}" if one in ("un", "onze") and tens != "quatre vingt" else f"{tens} {one}"
    return f"{tens} y {one}" if language == "es" else f"{tens} {one}"
