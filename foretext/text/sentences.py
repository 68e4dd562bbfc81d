"""Where sentences end."""

import re

ABBREVIATION = re.compile(r"(?:^|[\s(\[])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|cf|ca|Fig|Eq|Sec|No|Vol|pp?|al|[eE]\.g|[iI]\.e)\.$")
SENTENCE_END = re.compile(  # one leading set and then conditions on it: the engine skips to candidates five times faster
    r"""[.!?…。！？\n](?:(?<=[.!?…])[.!?…]*[)\]"'”’»]*(?=\s+[^\sa-z])|(?<=[。！？])[。！？]*[」』”）]*(?=\S)|(?<=\n)\s*\n)""")


def split_sentences(text: str, longest: int) -> list[str]:
    """Cut a text after sentence ends and before blank lines; the pieces joined are the text again.

    White space stays at the start of the next piece, so that pieces tokenize as they would inside the whole text. A piece of more
    than `longest` characters is cut at its line ends too (lists, tables, verse).
    """
    pieces, start = [], 0
    for match in SENTENCE_END.finditer(text):
        first, stop = match.span()
        if text[first] == "\n":
            stop = first
            while stop > start and text[stop - 1].isspace():
                stop -= 1
        elif text[first] == "." and ABBREVIATION.search(text, max(first - 6, start), first + 1):
            continue
        if stop > start:
            pieces.append(text[start:stop])
            start = stop
    if start < len(text):
        pieces.append(text[start:])
    if any(len(piece) > longest for piece in pieces):
        pieces = [part for piece in pieces for part in (re.split(r"(?=\n)", piece) if len(piece) > longest else [piece]) if part]
    return pieces
