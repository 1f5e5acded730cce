"""Search that finds Chinese: Sphinx cuts a page into words, and leaves what is typed whole."""

import re

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

HAN = "㐀-䶿一-鿿"
# A run of Chinese characters, or a word of any other language.
_RUNS = re.compile(rf"[{HAN}]+|[^\W{HAN}]+")

# What `split` does, for the words that a reader types.
_SPLIT_QUERY = f"""
var splitQuery = (query) =>
  (query.match(/[{HAN}]+|(?:(?![{HAN}])[\\p{{Letter}}\\p{{Number}}_])+/gu) || []).flatMap((run) =>
    /[{HAN}]/u.test(run) && run.length > 1
      ? Array.from({{ length: run.length - 1 }}, (_, i) => run.slice(i, i + 2))
      : [run]
  );
"""


class EnglishAndChinese(SearchEnglish):
    """English by its stems, Chinese by every two characters that stand side by side."""

    js_splitter_code = _SPLIT_QUERY

    def split(self, input: str) -> list[str]:
        words = []
        for run in _RUNS.findall(input):
            chinese = re.match(f"[{HAN}]", run)
            words += [*run, *(run[i : i + 2] for i in range(len(run) - 1))] if chinese else [run]
        return words


class ChineseSite(EnglishAndChinese):
    """The same under the name of the site's other language."""

    lang = "zh"
    language_name = "Chinese"


def setup(app: Sphinx) -> None:
    app.add_search_language(EnglishAndChinese)
    app.add_search_language(ChineseSite)
