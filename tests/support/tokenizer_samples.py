"""Texts and vocabularies that the tests of tokenization in a graph share."""

from bart_export.text.vocabulary import BYTE_SYMBOLS, SPECIAL_TOKENS

# One or more of everything that the pattern tells apart, most of it more than once.
PIECES = (
    *("a", "s", "t", "re", "ve", "ll", "d", "m", "S", "é", "ß", "漢字", "ไทย", "ǅ", "ª"),
    *("1", "23", "٤", "Ⅷ", "½", "६"),
    *(" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\u3000", "\u0085", "\u2028", "\x1c"),
    *("'", "''", "\u2019", ".", "-", "€", "👍🏽", "\u0301", "\u200d", "\x00", "\x7f", "\ufffd"),
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'RE", "'r", "'v", "'l", "'e", "'x"),
    *("\u180e", "\u200b", "\ufeff", "_", "\U0010ffff", "\ufffe"),
)


def vocabulary_of(merges):
    """Return the smallest vocabulary with all that the merges make."""
    made = [left + right for left, right in merges]
    tokens = dict.fromkeys((*BYTE_SYMBOLS, *made, *SPECIAL_TOKENS))
    return {token: id for id, token in enumerate(tokens)}
