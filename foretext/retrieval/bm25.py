"""BM25, the baseline every encoder is held against, through the bm25s library.

Lucene's variant (its idf, no factor k1 + 1), k1 = 0.9 and b = 0.4 as Anserini and BEIR use it, English stop words
removed, Snowball stemmer.

References: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework"; Kamphuis et al. 2020, "Which BM25 do
you mean?" (the variants); Lu 2024, "BM25S" (the library).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foretext.errors import UserError
from foretext.files import read_json, whole_folder, write_json
from foretext.progress import progress


class BM25:
    """An index over `documents`; their numbers are their places in that list.

    Args:
        k1: how soon more occurrences of a word stop adding, > 0.
        b: how much long documents are held back, 0 to 1.
        stemmer: a Snowball language ("english", "german", ...) or "none".
        stop_words: a language of bm25s ("english", "german", ...) or "none".

    Raises:
        UserError: an option out of range, or no documents.
    """

    def __init__(self, documents: Sequence[str], k1: float = 0.9, b: float = 0.4, stemmer: str = "english",
                 stop_words: str = "english"):
        import bm25s

        self.options = _checked(k1, b, stemmer, stop_words)
        if not len(documents):
            raise UserError("BM25 needs at least one document")
        tokens = self._tokenize(documents)
        if not tokens.vocab:
            raise UserError("BM25 found no word in any document; are stop words and stemmer of another language?")
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
        self._index.index(tokens, show_progress=False)
        self.size = len(documents)

    def search(self, queries: Sequence[str], k: int, show_progress: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The best k documents of each query, ties by document number.

        Returns:
            scores float32 (Q, k) and document numbers int64 (Q, k). A document that shares no word with the query is
            not found; places without a document hold -inf and -1.
        """
        words = self._tokenize(queries)
        vocabulary = self._index.vocab_dict
        numbers = {number: vocabulary.get(word) for word, number in words.vocab.items()}
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        indices = np.full((len(queries), k), -1, dtype=np.int64)
        with progress("BM25 search", len(queries) if show_progress else 0) as advance:
            for q, query in enumerate(words.ids):
                known = [numbers[word] for word in query if numbers[word] is not None]
                if known:
                    found, found_scores = _best(self._index.get_scores_from_ids(known), k)
                    indices[q, :len(found)], scores[q, :len(found)] = found, found_scores
                if show_progress:
                    advance()
        return scores, indices

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the index (not the documents) as a folder of arrays and JSON."""
        with whole_folder(folder, overwrite) as temporary:
            self._index.save(str(temporary), show_progress=False)
            write_json(temporary / "foretext-bm25.json", {"format": 1, "size": self.size, **self.options})

    @classmethod
    def load(cls, folder: str | Path) -> "BM25":
        """Read what `save` wrote."""
        import bm25s

        settings = Path(folder) / "foretext-bm25.json"
        if not settings.exists():
            raise UserError(f"{folder}: holds no BM25 index (no {settings.name})")
        options = read_json(settings)
        self = cls.__new__(cls)
        self.size = options.pop("size")
        if options.pop("format") != 1:
            raise UserError(f"{settings}: written by a newer foretext; expected format 1")
        self.options = options
        self._index = bm25s.BM25.load(str(folder), load_corpus=False)
        return self

    def _tokenize(self, texts: Sequence[str]):
        """Lower-cased words of two letters or more, without stop words, stemmed: bm25s's (ids, vocab)."""
        import bm25s

        stemmer = None
        if self.options["stemmer"] != "none":
            import Stemmer

            stemmer = Stemmer.Stemmer(self.options["stemmer"])
        stop_words = None if self.options["stop_words"] == "none" else self.options["stop_words"]
        return bm25s.tokenize(list(texts), stopwords=stop_words, stemmer=stemmer, show_progress=False)


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and scores of the k best positive `scores (N,)`, ties by number."""
    found = np.flatnonzero(scores > 0)
    if len(found) > k:
        # Everything that reaches the k-th score, then a stable sort: argpartition alone would pick any of a tie.
        kth = np.partition(scores[found], len(found) - k)[len(found) - k]
        found = found[scores[found] >= kth]
    found = found[np.argsort(-scores[found], kind="stable")[:k]]
    return found, scores[found]


def _checked(k1: float, b: float, stemmer: str, stop_words: str) -> dict:
    import Stemmer
    from bm25s.tokenization import _infer_stopwords

    if not k1 > 0:
        raise UserError(f"k1 = {k1}: expected a number above 0 (usual: 0.9 to 2)")
    if not 0 <= b <= 1:
        raise UserError(f"b = {b}: expected a number from 0 to 1 (usual: 0.4 to 0.75)")
    if stemmer != "none" and stemmer not in Stemmer.algorithms():
        raise UserError(f"no stemmer {stemmer!r}; there are none, {', '.join(sorted(Stemmer.algorithms()))}")
    if stop_words != "none":
        try:
            _infer_stopwords(stop_words)
        except ValueError:
            raise UserError(f"no stop words for {stop_words!r}; there are english, german, dutch, french, spanish,"
                            " portuguese, italian, russian, swedish, norwegian, chinese, turkish, korean, danish,"
                            " none") from None
    return {"k1": k1, "b": b, "stemmer": stemmer, "stop_words": stop_words}
