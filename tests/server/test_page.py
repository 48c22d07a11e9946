"""The page in a headless browser."""

import contextlib
import pathlib
import shutil

import numpy as np
import pytest
from support.arithmetic import PREDICT, STRING, Arithmetic, signature
from support.counting import Counting
from support.rest_server import served, store_of

from bart_export.server.servable import TextReader
from bart_export.server.versions import ServedModel

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Shouting(Arithmetic):
    """Answers with the text in upper case, without streaming."""

    signature_defs = {
        "serving_default": signature(PREDICT, {"text": STRING}, {"generated_text": STRING})
    }

    def run(self, call):
        texts = [text.upper() for text in call.inputs["text"].tolist()]
        return {"generated_text": np.array(texts, object)}


class Tokenizing(Shouting):
    """Counts characters as tokens."""

    signature_defs = {
        **Shouting.signature_defs,
        "tokenize": signature(
            PREDICT,
            {"text": STRING},
            {"encoder_lengths": "DT_INT32", "encoder_token_ids": "DT_INT32"},
        ),
    }

    def run(self, call):
        if call.signature != "tokenize":
            return super().run(call)
        length = min(self.reader.longest, len(call.inputs["text"][0]))
        return {
            "encoder_lengths": np.array([length], np.int32),
            "encoder_token_ids": np.zeros((1, length), np.int32),
        }


class Reader(TextReader):
    """Reads up to `longest` characters."""

    def __init__(self, longest=1):
        super().__init__(tokenizer=self, longest=longest)

    def encode(self, text, remarks, row=0):
        remarks.truncated += [row] * (len(text) > self.longest)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@contextlib.contextmanager
def opened(browser, servables, refused=False, **settings):
    """Open the page of a server; requests to other servers and console messages are errors."""
    models = [
        ServedModel(name=name, base_path=pathlib.Path("/m"), engine="litert") for name in servables
    ]
    versions = {(name, 1): servable for name, servable in servables.items()}
    with store_of(models, versions) as store, served(store) as server:
        page = browser.new_page(**settings)
        page.set_default_timeout(60_000)
        address = f"http://127.0.0.1:{server.port}/"
        complaints, elsewhere = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(address) or elsewhere.append(request.url),
        )
        page.goto(address)
        try:
            yield page
        finally:
            page.close()
        assert [url for url in elsewhere if not url.startswith("data:")] == []
        # The browser itself logs error responses.
        expected = "Failed to load resource" if refused else None
        assert [text for text in complaints if not expected or expected not in text] == []


def generate(page, text):
    """Generate from a text on the page."""
    page.get_by_label("Your text").fill(text)
    page.get_by_role("button", name="Generate").click()


def test_a_result_streams_in_and_says_how_fast_it_was(browser):
    servable = Counting(seconds=0.05, pause_after=3)
    with opened(browser, {"counting": servable}) as page:
        generate(page, "go")
        result, status = page.locator("#result"), page.get_by_role("status").last
        page.locator("#result", has_text="3 ").wait_for()
        assert result.text_content() == "1 2 3 "
        assert result.get_attribute("aria-busy") == "true"
        servable.pause_after = 20
        page.get_by_text("Done:").wait_for()
        assert result.text_content() == "".join(f"{number} " for number in range(1, 21))
        assert result.get_attribute("aria-busy") == "false"
        assert status.text_content() == "Done: 20 tokens in 1.00 s, 20 tokens per second."
        generate(page, "go")
        page.locator("#result", has_text="20 ").wait_for()
        assert result.text_content().count("1 2 3 ") == 1


CUT = "Your text is longer than the model reads, so its end was cut."


@pytest.mark.parametrize(
    ("text", "words"), [("to be cut", CUT), (" ", "There is no word in your text."), ("go", None)]
)
def test_what_was_not_read_is_said(browser, text, words):
    with opened(browser, {"counting": Counting()}) as page:
        generate(page, text)
        page.get_by_text("Done:").wait_for()
        told = page.get_by_role("status").last.text_content().partition("per second.")[2]
        assert told == ("" if words is None else f" {words}")


def test_what_was_not_read_is_said_of_an_answer_that_comes_whole(browser):
    servable = Shouting()
    servable.reader = Reader()
    with opened(browser, {"shouting": servable}) as page:
        generate(page, "to be cut")
        page.get_by_text(CUT).wait_for()
        generate(page, " ")
        page.get_by_text("There is no word in your text.").wait_for()
        assert page.locator("#result").text_content() == ""


def test_stop_ends_the_work_and_keeps_the_text(browser):
    servable = Counting(pause_after=2)
    with opened(browser, {"counting": servable}) as page:
        generate(page, "go")
        page.locator("#result", has_text="2 ").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped after").wait_for()
        assert servable.ended.wait(60)
        assert page.locator("#result").text_content() == "1 2 "
        assert page.evaluate("document.activeElement.id") == "generate"


def test_everything_can_be_done_by_keyboard(browser):
    servable = Counting(pause_after=1)
    with opened(browser, {"counting": servable}) as page:
        for focused in ("example", "text", "beams", "model", "generate", "result"):
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.id") == focused
        page.get_by_label("Your text").focus()
        page.keyboard.type("go")
        page.keyboard.press("Control+Enter")
        page.locator("#result", has_text="1 ").wait_for()
        page.keyboard.press("Escape")
        page.get_by_text("Stopped").wait_for()
        assert servable.ended.wait(60)


def test_a_model_that_cannot_stream_answers_whole_and_says_so(browser):
    with opened(browser, {"counting": Counting(), "shouting": Shouting()}) as page:
        page.get_by_label("Model").select_option("shouting")
        generate(page, "quietly")
        page.get_by_text("This model cannot stream its text.").wait_for()
        assert page.locator("#result").text_content() == "QUIETLY"
        assert page.get_by_text("Beams and lengths").is_hidden()


BUSY = "The server is busy. Try again in a moment."
LOST = "The connection to the server was lost."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x" * 5001, "A text may have 5000 tokens, received 5001."),
        ("3", "RuntimeError: the engine broke"),
        ("go", BUSY),
        ("go", LOST),
    ],
)
def test_errors_are_told_in_words(browser, text, words):
    servable = Counting(seconds=0.1, queue_size=0)
    with opened(browser, {"counting": servable}, refused=True) as page:
        if words == BUSY:
            assert servable.places.acquire()  # as another client does
        if words == LOST:
            page.route("**/*:generate", lambda route: route.abort())
        generate(page, text)
        page.get_by_text(words).wait_for()
        assert page.get_by_role("alert").text_content().startswith(words)
        assert page.get_by_role("button", name="Generate").is_enabled()


def test_no_model_is_told_of_in_words(browser):
    with opened(browser, {}) as page:
        assert "This server has no model yet." in page.get_by_role("alert").text_content()
        assert page.get_by_role("button", name="Generate").is_disabled()


def test_tokens_are_counted_while_one_types(browser):
    servable = Tokenizing()
    servable.reader = Reader(longest=10)
    with opened(browser, {"counting": Counting(), "tokenizing": servable}) as page:
        page.get_by_label("Your text").fill("seven 7")
        assert page.locator("#count").text_content() == ""  # that model does not count
        page.get_by_label("Model").select_option("tokenizing")
        page.get_by_text("7 of 10 tokens").wait_for()
        page.get_by_label("Your text").fill("this is longer")
        page.get_by_text("Cut at 10 tokens").wait_for()


def test_an_example_its_beams_and_lengths_and_a_copy(browser):
    with opened(browser, {"counting": Counting()}) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        assert page.get_by_role("button", name="Copy").is_disabled()
        page.get_by_role("button", name="Example").click()
        assert len(page.get_by_label("Your text").input_value()) > 100
        page.get_by_text("Beams and lengths").click()
        page.get_by_label("At most").fill("3")
        page.get_by_label("Beams", exact=True).fill("2")
        with page.expect_request("**/*:generate") as asked:
            page.get_by_role("button", name="Generate").click()
        asked = asked.value.post_data_json
        assert (asked["num_beams"], asked["max_length"], "min_length" in asked) == (2, 3, False)
        page.get_by_text("Done: 3 tokens").wait_for()
        page.get_by_role("button", name="Copy").click()
        page.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == "1 2 3 "


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_scheme_and_fits_a_phone(browser, scheme):
    phone = {"width": 360, "height": 740}
    with opened(browser, {"m": Counting()}, color_scheme=scheme, viewport=phone) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(paper.removeprefix("rgb(").split(",")[0])
    assert (red > 128) == (scheme == "light")
