"""The report says of every file what the manifest says, and its pictures can be read."""

import contextlib
import dataclasses
import re
import xml.etree.ElementTree as ElementTree

import pytest

from bart_export.artifact.figures import (
    FileVerification,
    LayerSensitivity,
    Machine,
    MeasuredLength,
    Measurement,
    RougeLoss,
    SavedModelVerification,
    TextFile,
)
from bart_export.artifact.manifest import (
    BucketEntry,
    Calibration,
    SavedModelEntry,
    StaticEntry,
    TfliteEntry,
)
from bart_export.bench import measurements
from bart_export.contract import StaticShapes
from bart_export.report import layer_picture, pictures, report
from bart_export.report import style as ink
from bart_export.report.facts import (
    CALIBRATED,
    FLOAT,
    INT4,
    INT8,
    Figure,
    Reported,
    share,
    told_apart,
)
from bart_export.runtime.engines import open_engine
from bart_export.runtime.generator import ModelInfo

SVG = "{http://www.w3.org/2000/svg}"
RECIPES = {
    "float32": ("float", ()),
    "float16": ("weight_only", ((".*", "float16"),)),
    "weight_only_wi8_afp32": ("weight_only", ((".*", "int8"),)),
    "dynamic_wi8_afp32": ("dynamic", ((".*", "int8"),)),
    "dynamic_wi8_afp32_tensorwise": ("dynamic", ((".*", "int8_tensorwise"),)),
    "dynamic_wi4_afp32": ("dynamic", ((".*", "int8"), ("decoder/.*", "int4"))),
    "static_wi8_ai16": ("static_ai16", ((".*", "int8"),)),
    "static_wi8_ai8": ("static_ai8", ((".*", "int8"),)),
    "of_$my_own_with_$a_name_of_32_et": ("dynamic", (("encoder/.*", "int4"),)),
}
LAYERS = {
    "token_embedding": 0.02,
    "encoder/position_embedding": 0.0001,
    "encoder/layer_0/self_attention_query": 0.002,
    "encoder/layer_0/feedforward_output": 0.007,
    "decoder/layer_0/cross_attention_value": 0.003,
    "decoder/layer_11/feedforward_output": 0.0,
}


@pytest.fixture(scope="module")
def manifest(mini_artifact):
    """Return the manifest of an artifact with all that an export can add to it."""
    files = {
        name: measurements.Measured(
            None,
            lambda name=name: contextlib.nullcontext(
                open_engine(mini_artifact, name, num_threads=1)
            ),
        )
        for name in mini_artifact.files("tflite")
    }
    info = dataclasses.replace(ModelInfo.from_artifact(mini_artifact), encoder_sequence_length=32)
    losses = {"rouge_l": RougeLoss(model=32.5, file=32.25, loss=0.25, low=-0.125, high=0.625)}
    data = TextFile("0" * 64, 775)
    return dataclasses.replace(
        mini_artifact.manifest,
        measurements=tuple(measurements.measure(files, info, export=3)),
        verification=tuple(
            dataclasses.replace(row, rouge=losses, data=data)
            for row in mini_artifact.manifest.verification
        ),
        sensitivity=tuple(
            LayerSensitivity(layer, 1, "int4", kl, 0.1) for layer, kl in LAYERS.items()
        ),
        licence="a licence",
    )


@pytest.fixture(scope="module")
def written(manifest, tmp_path_factory):
    """Return the directory of a report with everything, and the names of its files."""
    directory = tmp_path_factory.mktemp("report")
    return directory, report.write(directory, manifest)


def tables(text):
    """Return the tables of a Markdown text: for each, heads and rows of cells."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = [line.strip("| ").split(" | ") for line in block.splitlines()]
        found.append((lines[0], lines[2:]))
    return found


def rows_of(text, head):
    """Return the rows, by their first cell, of the table with a head, as head → cell."""
    heads, rows = next((heads, rows) for heads, rows in tables(text) if head in heads)
    return {row[0].strip("`"): dict(zip(heads, row, strict=True)) for row in rows}


def test_every_file_is_there_with_its_true_size_and_figures(manifest, written):
    text = (written[0] / report.REPORT).read_text()
    costs, contents = rows_of(text, "same texts"), rows_of(text, "bytes")
    files = manifest.tflite()
    assert sorted(costs) == sorted(entry.recipe for entry in files.values())
    verified = {row.file: row for row in manifest.verification}
    for name, entry in files.items():
        size, row = entry.bytes, costs[entry.recipe]
        assert row["MB"] == f"{size / 1e6:.1f}"
        for figure, head, words in (
            ("top1", "same next token", ".1%"),
            ("tokens", "same texts", ".0%"),
        ):
            figures = verified[name]
            count = figures.steps if figure == "top1" else figures.questions
            one = share(getattr(figures, figure), count)
            cell = f"{one.value:{words}} ({one.low:{words}} to {one.high:{words}})"
            assert row[head].replace("\N{NO-BREAK SPACE}", " ") == cell
        lost = row["ROUGE-L lost"].replace("\N{NO-BREAK SPACE}", " ")
        assert lost == "+0.25 (\N{MINUS SIGN}0.12 to +0.62)"
        assert contents[name]["bytes"] == f"{size:,}"
    total = sum(int(row["bytes"].replace(",", "")) for row in contents.values())
    own = ("REPORT.md", "report/")
    assert total == sum(
        entry.bytes for name, entry in manifest.files.items() if not name.startswith(own)
    )


@pytest.mark.parametrize(
    ("value", "count", "low", "high"),
    # Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17
    # (1998), table I, method 3.
    [(81 / 263, 263, 0.2553, 0.3662), (15 / 148, 148, 0.0624, 0.1605), (0.0, 20, 0.0, 0.1611)],
)
def test_a_share_has_the_interval_of_wilson(value, count, low, high):
    one = share(value, count)
    assert (one.low, one.high) == pytest.approx((low, high), abs=5e-5)


def test_files_are_told_apart_only_by_intervals_that_do_not_meet():
    near, far = Figure(0.97, 0.88, 0.99), Figure(0.5, 0.4, 0.6)
    assert not told_apart([Figure(1.0, 0.92, 1.0), near])
    assert told_apart([Figure(1.0, 0.92, 1.0), near, far])
    assert not told_apart([far, None])
    assert not told_apart([])


def test_a_picture_leaves_out_what_does_not_tell_files_apart(many):
    def heads(steps):
        files = [
            dataclasses.replace(
                one, verification=dataclasses.replace(one.verification, steps=steps)
            )
            for one in many
        ]
        return [column.head for column in pictures.cost_columns(files, 4)]

    assert heads(10_000) == ["Size, MB", "Same next token, %", "Tokens a second"]
    assert heads(42) == ["Size, MB", "Tokens a second"]


def test_a_file_s_line_says_how_it_stores_and_computes(manifest, tmp_path):
    name = "tflite/dynamic_wi8_afp32.tflite"
    changed = dataclasses.replace(
        manifest.files[name],
        mode="static_ai8",
        layers=((".*", "int8"),),
        shapes=StaticShapes((16, 64), 32, (1, 4)),
        calibration=Calibration(32),
    )
    signatures = {"encode_16": BucketEntry("encode", {"source": 16}, {}, {})}
    entry = StaticEntry(**vars(changed), signatures=signatures)
    report.write(tmp_path, dataclasses.replace(manifest, files={name: entry}))
    text = (tmp_path / report.REPORT).read_text()
    (line,) = re.findall(rf"^- `{name}`: for .*?(?=^- |^$)", text, re.MULTILINE | re.DOTALL)
    for words in (
        "sources of 16 or 64 tokens, texts of 32, 1 or 4 beams.",
        "Matrices in int8, one scale per row;",
        "computes in int8, calibrated on 32 texts;",
        "runs on ai-edge-litert 2.3.0.",
    ):
        assert words in " ".join(line.split())
    assert f"`{name}` has fixed sizes: `encode_16`." in text


def test_speeds_are_those_that_were_measured(manifest, written):
    text = (written[0] / report.REPORT).read_text()
    speeds = rows_of(text, "4 beams")
    assert "from 32 source ids to the last of 31 new tokens" in " ".join(text.split())
    for row in manifest.measurements:
        for one in row.lengths:
            how = "greedy" if one.num_beams == 1 else "4 beams"
            rates = [31 / seconds for seconds in (one.seconds, one.slowest, one.fastest)]
            cell = speeds[manifest.files[row.file].recipe][how]
            expected = "{:.0f} ({:.0f} to {:.0f})".format(*rates)
            assert cell.replace("\N{NO-BREAK SPACE}", " ") == expected


def test_what_an_export_does_not_have_is_said_to_be_missing(manifest, tmp_path):
    rows = (dataclasses.replace(row, rouge=None, data=None) for row in manifest.verification)
    bare = dataclasses.replace(
        manifest, measurements=(), sensitivity=(), licence=None, verification=tuple(rows)
    )
    assert report.write(tmp_path, bare) == [report.REPORT, report.COSTS]
    text = (tmp_path / report.REPORT).read_text()
    assert report.UNKNOWN_LICENCE in text
    for words in (
        "Times were not measured",
        "bart-export tune bart_mini_en",
        "texts that people wrote",
        "three short texts",
    ):
        assert words in " ".join(text.split())
    assert {row["ROUGE-L lost"] for row in rows_of(text, "ROUGE-L lost").values()} == {"–"}


def test_times_of_two_exports_are_not_passed_off_as_one_run(manifest, tmp_path):
    rows = (
        dataclasses.replace(row, export=number)
        for number, row in enumerate(manifest.measurements, start=1)
    )
    report.write(tmp_path, dataclasses.replace(manifest, measurements=tuple(rows)))
    text = " ".join((tmp_path / report.REPORT).read_text().split())
    assert "They were taken in 2 exports" in text
    assert "Files took turns" not in text


def test_a_report_without_tflite_files_has_no_pictures(manifest, tmp_path):
    files = {
        "saved_model/1/saved_model.pb": SavedModelEntry(5, "0" * 64, "saved_model", 1),
        "saved_model/1/variables/variables.index": SavedModelEntry(7, "0" * 64, "saved_model"),
    }
    row = SavedModelVerification("saved_model/1", 0.5, 4.5e-06, 1.0, 1.0, 20, 9)
    other = dataclasses.replace(manifest, files=files, verification=(row,), sensitivity=())
    assert report.write(tmp_path, other) == [report.REPORT]
    contents = rows_of((tmp_path / report.REPORT).read_text(), "bytes")
    assert [(name, row["bytes"]) for name, row in contents.items()] == [("saved_model/1", "12")]
    text = " ".join((tmp_path / report.REPORT).read_text().split())
    words = "log_probabilities 0.5, hidden 4.5e-06, tokens 1, texts 1, steps 20, questions 9."
    assert f"`saved_model/1` compared with the float model: {words}" in text


def test_pictures_and_words_are_the_same_each_time(manifest, written, tmp_path):
    directory, names = written
    assert names == [report.REPORT, report.COSTS, report.SENSITIVITY]
    report.write(tmp_path, manifest)
    for name in names:
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes()
        assert f"({name})" in (directory / report.REPORT).read_text() or name == report.REPORT


def words_of(svg):
    """Return the words of an SVG text, and the style of each."""
    root = ElementTree.fromstring(svg)
    return [("".join(one.itertext()), one.get("style")) for one in root.iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def many():
    """Return files of every recipe, most of them as large and quick as one another."""
    return [
        Reported(
            f"tflite/{name}.tflite",
            TfliteEntry(
                9_000_000 - 1000 * place, "0" * 64, "tflite", recipe=name, mode=mode,
                layers=layers, tolerance={}, runtimes={}, refusals={},
            ),
            FileVerification(
                name, logits=0.1, spread=1.0, relative=0.1, kl=0.1, top1=0.99 - place / 100,
                tokens=None, steps=10_000, questions=0, signatures={},
            ),
            Measurement(
                name, 1, Machine("a processor", "x86_64"), 1, 9,
                (
                    MeasuredLength(
                        64, 4, 32, seconds=0.04 + place, fastest=0.03 + place,
                        slowest=0.05 + place,
                    ),
                ),
            ),
        )
        for place, (name, (mode, layers)) in enumerate(RECIPES.items())
    ]  # fmt: skip


def test_files_are_told_apart_by_what_of_them_is_narrow(many):
    assert [one.kind for one in many] == [
        FLOAT, FLOAT, INT8, INT8, INT8, INT4, CALIBRATED, CALIBRATED, INT4,
    ]  # fmt: skip
    assert many[0].label == "float32"
    shapes = StaticShapes((16,), 16, (1,))
    entry = dataclasses.replace(many[0].entry, recipe="x" * 80, shapes=shapes)
    longer = dataclasses.replace(many[0], entry=entry)
    assert longer.label == f"{'x' * 31}… (static)"
    assert set(pictures.INKS) == {FLOAT, INT8, INT4, CALIBRATED}


@pytest.fixture(scope="module", params=["costs", "sensitivity"])
def picture(request, many):
    """Return the SVG of a picture of many files, or of some layers."""
    with ink.drawing():
        if request.param == "sensitivity":
            figure = layer_picture.sensitivities(LAYERS, "int4")
        else:
            figure = pictures.costs(many, pictures.cost_columns(many, 4))
        boxes = text_boxes(figure)
        return request.param, ink.to_svg(figure), boxes


def text_boxes(figure):
    """Return the words of a figure, each with the box that it fills, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [
        (one.get_text(), Text.get_window_extent(one, canvas.get_renderer()))
        for one in figure.findobj(Text)
        if one.get_text() and one.get_visible()
    ]


def test_every_recipe_has_its_name_in_a_picture(picture):
    name, svg, _ = picture
    shown = [words for words, _ in words_of(svg)]
    if name == "sensitivity":
        assert {"token", "encoder position", "self attention query", "11"} <= set(shown)
        assert {"20", "7", "3", "2", "0.1"} <= set(shown)  # the largest, in thousandths
    else:
        assert [shown.count(recipe) for recipe in RECIPES] == [1] * len(RECIPES)


def test_no_words_of_a_picture_overlap_or_leave_it(picture):
    _, svg, boxes = picture
    width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split()[2:])
    scale = 100 / 72  # matplotlib's pixels a point
    # A box has some room above and below its letters.
    inner = [(words, box.shrunk(1, 0.7)) for words, box in boxes]
    for number, (words, box) in enumerate(inner):
        assert box.x0 >= 0 and box.x1 <= width * scale, words
        assert box.y0 >= 0 and box.y1 <= height * scale, words
        for others, other in inner[:number]:
            assert not box.overlaps(other), (words, others)


def luminance(colour):
    """Return the relative luminance of "#rrggbb" (WCAG 2.2, relative luminance)."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """Return the contrast ratio of two colours (WCAG 2.2, contrast ratio)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_as_the_standard_says():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def dark_of(svg):
    """Return what the style of an SVG puts in the place of each colour on a dark ground."""
    (style,) = re.findall(r"@media \(prefers-color-scheme: dark\)\{(.*?)\}</style>", svg)
    rules = re.findall(r'\[style\*="(fill|stroke): (#\w{6})"\]\{(\w+):(#\w{6}) !important\}', style)
    assert all(what == set_ for what, _, set_, _ in rules)
    return {(what, light): dark for what, light, _, dark in rules}


def test_words_can_be_read_on_a_light_and_on_a_dark_ground(picture):
    svg = picture[1]
    dark = dark_of(svg)
    ground = ElementTree.fromstring(svg).find(f"{SVG}g/{SVG}g/{SVG}path").get("style")
    assert ground == f"fill: {ink.GROUND.light}"
    colours = {re.search(r"fill: (#\w{6})", style)[1] for _, style in words_of(svg)}
    assert len(colours) >= 2
    for colour in colours:
        assert contrast(colour, ink.GROUND.light) >= 4.5
        assert contrast(dark["fill", colour], dark["fill", ink.GROUND.light]) >= 4.5


def test_every_colour_of_a_picture_has_one_for_the_dark(picture):
    svg = picture[1]
    used = set(re.findall(r"(fill|stroke): (#\w{6})", re.sub(r"<style.*?</style>", "", svg)))
    assert used - set(dark_of(svg)) == set()
