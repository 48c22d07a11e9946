"""Where presets and artifacts may be: the forms of handles on hubs, and of URLs."""

import os
import re

Location = str | os.PathLike[str]  # a path or a URL

HUB, KAGGLE_HUB = "hf://", "kaggle://"
WORD = r"[\w][\w.-]*"
KAGGLE = re.compile(rf"{KAGGLE_HUB}({WORD}/{WORD}/keras/{WORD})(?:/(\d+))?", re.ASCII)
HUGGING_FACE = re.compile(rf"{HUB}({WORD}/{WORD})(?:@(?!.*\.\.)(\w[\w./-]*))?", re.ASCII)
REPOSITORY = re.compile(rf"{WORD}/{WORD}", re.ASCII)
# A URL, possibly chained, such as gs://bucket/bart or simplecache::gs://bucket/bart. A drive of
# Windows has one letter.
URL = re.compile(r"[A-Za-z][\w+.-]+:(:[^/]*:)?//")
CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
QUERY = re.compile(r"(://[^?\s]*)\?[^\s\"']+")  # may have a token or a signature


def url_of(location: Location) -> str:
    """Return a location as a string; a Path has lost a slash of hf:// or kaggle://."""
    return re.sub(r"^(hf|kaggle):/(?!/)", r"\1://", os.fspath(location))


def is_remote(location: Location) -> bool:
    """Return whether a location is a URL rather than a path."""
    return URL.match(url_of(location)) is not None


def redacted(text: str) -> str:
    """Return a text without the credentials and queries of its URLs."""
    return QUERY.sub(r"\1", CREDENTIALS.sub("", text))


def last_name(location: Location) -> str:
    """Return the last part of a location, without a revision on a hub."""
    url = url_of(location)
    if not is_remote(url):
        return os.path.basename(os.path.abspath(location))
    path = url.partition("@")[0] if url.startswith(HUB) else redacted(url)
    return path.rstrip("/").rpartition("/")[2]
