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
SCHEME = re.compile(r"(?:^|(?<=::))[A-Za-z][\w+.-]+(?=:)")
FILE = re.compile(r"(?i:file|local):(?://(?:localhost)?)?(?=/)")  # of the URL of a local path
# Up to the last "@" of the line: a malformed password may have an "@", a "/" or a space. A port is
# no password; its URL may have an "@" in the path. A text is read once, however many URLs it has.
CREDENTIALS = re.compile(
    r"(?<=\w\w:/)(/*)"
    r"(?:[^/\s:@\[]*:(?!\d{1,5}(?:[^\w.@-]|$)|\s)(?:(?!\w\w:/).)*@|[^/\s]*@)"
)
# May have a token or a signature.
QUERY = re.compile(r"(?<=\w\w:/)((?:(?!\w\w:/)[^?#\s])*)[?#](?:[^\s\"']|[\"'](?=\w))+")
TOKEN = re.compile(r"(?<=\bBearer )[^\"']+")  # in an error about a header


def normalized(location: Location) -> str:
    """Return a location as a string: a URL, or a path; a file:// URL becomes its path.

    Schemes become lowercase. A Path has lost a slash of a URL.
    """
    text = re.sub(r"^(?!(?i:file|local):)(\w[\w+.-]+):/(?!/)", r"\1://", os.fspath(location))
    if URL.match(text):
        text = SCHEME.sub(lambda scheme: scheme[0].lower(), text)
    if (found := FILE.match(text)) is None:
        return text
    from urllib.request import url2pathname  # slow to import

    return url2pathname(text[found.end() :])


def is_remote(location: Location) -> bool:
    """Return whether a location is a URL rather than a local path."""
    return URL.match(normalized(location)) is not None


def redacted(text: str) -> str:
    """Return a text without the credentials and queries of its URLs, and without bearer tokens."""
    return TOKEN.sub("…", QUERY.sub(r"\1", CREDENTIALS.sub(r"\1", text)))


def redacted_url(url: str) -> str:
    """Return a URL without its credentials and all that follows its path."""
    return re.split(r"[?#]", CREDENTIALS.sub(r"\1", url), maxsplit=1)[0]


def last_name(location: Location) -> str:
    """Return the last part of a location, without its revision or version on a hub."""
    url = normalized(location)
    if not is_remote(url):
        return os.path.basename(os.path.abspath(url))
    found = HUGGING_FACE.fullmatch(url) or KAGGLE.fullmatch(url)
    return (found[1] if found else redacted_url(url)).rstrip("/").rpartition("/")[2]
