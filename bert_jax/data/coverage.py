"""The share of [UNK] that a tokenizer gives for plain text in the scripts it covers."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

from bert_jax.data.tokenizer import UNKNOWN_LIMIT, TextTokenizer

_COVERED = 0.05  # share of the pieces with letters that are of a script
_SPECIAL = ("[", "<")
_SAMPLES = {  # two plain sentences in each script, by the first word of its names
    "LATIN": "The house stands near the river, and many people live there. They have "
    "worked in the city for ten years.",
    "CYRILLIC": "Дом стоит у реки, и там живёт много людей. Они работали в городе "
    "десять лет.",
    "GREEK": "Το σπίτι είναι κοντά στο ποτάμι και εκεί ζουν πολλοί άνθρωποι.",
    "HANGUL": "집은 강 가까이에 있고 많은 사람이 그곳에 산다. 그들은 도시에서 십 년 "
    "동안 일했다.",
    "CJK": "房子在河边，有很多人住在那里。他们在城市里工作了十年。",
    "HIRAGANA": "いえはかわのちかくにあり、そこにはたくさんのひとがすんでいます。",
    "ARABIC": "البيت قريب من النهر، ويعيش هناك كثير من الناس.",
    "HEBREW": "הבית נמצא ליד הנהר, והרבה אנשים גרים שם.",
    "DEVANAGARI": "घर नदी के पास है और वहाँ बहुत लोग रहते हैं।",
    "BENGALI": "বাড়িটি নদীর কাছে এবং সেখানে অনেক মানুষ বাস করে।",
    "TAMIL": "வீடு ஆற்றின் அருகே உள்ளது, அங்கே பல மக்கள் வாழ்கிறார்கள்.",
    "THAI": "บ้านอยู่ใกล้แม่น้ำ และมีคนมากมายอาศัยอยู่ที่นั่น",
}


def scripts(tokens: Iterable[str]) -> list[str]:
    """The scripts that a vocabulary covers, the commonest first.

    A script counts from one in twenty of the pieces with letters on, so that an
    English vocabulary with a few Chinese characters is not one of Chinese.
    """
    found: Counter[str] = Counter()
    for token in tokens:
        letter = next((c for c in token if c.isalpha()), "")
        if letter and not token.startswith(_SPECIAL):
            found[unicodedata.name(letter, "").split(" ")[0]] += 1
    total = found.total()
    return [name for name, n in found.most_common() if n >= _COVERED * total]


def unknown(tokenizer: TextTokenizer) -> tuple[float, list[str]]:
    """The share of [UNK] among the tokens of the sample.

    Args:
      tokenizer: any.

    Returns:
      The share, and the scripts of the sample: those that the vocabulary covers. No
      scripts where none of them is known here, or no text can give [UNK].
    """
    vocabulary = tokenizer.vocabulary()
    if tokenizer.kind == "byte_bpe":
        return 0.0, []
    tokens = map(tokenizer.token, range(vocabulary.size))
    known = [name for name in scripts(tokens) if name in _SAMPLES]
    ids, _ = tokenizer.encode_batch([_SAMPLES[name] for name in known])
    return float((ids == vocabulary.unk).mean()) if len(ids) else 0.0, known


def warning(share: float, known: Iterable[str]) -> str:
    """What to say of the result of `unknown`; "" for a share as it should be."""
    if share <= UNKNOWN_LIMIT:
        return ""
    return (
        f"{share:.0%} of the tokens of plain text in {', '.join(known)} letters are "
        "[UNK]; the vocabulary may be of another kind of tokenizer, or of text split "
        "into words beforehand"
    )
