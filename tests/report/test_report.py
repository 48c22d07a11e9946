"""The report has the manifest's figures, and its pictures are readable."""

import contextlib
import dataclasses
import re
import xml.etree.ElementTree as ElementTree

import pytest

from bart_export.artifact import figures
from bart_export.artifact.figures import MeasuredLength, Measurement
from bart_export.artifact.manifest import (
    BucketEntry,
    Calibration,
    SavedModelEntry,
    StaticEntry,
    TfliteEntry,
)
from bart_export.bench import measurements
from bart_export.contract import StaticShapes
from bart_export.report import facts, pictures, report
from bart_export.report.facts import CALIBRATED, FLOAT, INT4, INT8, Figure, share
from bart_export.runtime.engine_choice import open_engine
from bart_export.runtime.generator import ModelInfo

SVG = "{http://www.w3.org/2000/svg}"
# Recipe -> mode, layers in a narrow storage, and kind in a picture.
RECIPES = {
    "float32": ("float", (), FLOAT),
    "float16": ("weight_only", ((".*", "float16"),), FLOAT),
    "weight_only_wi8_afp32": ("weight_only", ((".*", "int8"),), INT8),
    "dynamic_wi8_afp32": ("dynamic", ((".*", "int8"),), INT8),
    "dynamic_wi8_afp32_tensorwise": ("dynamic", ((".*", "int8_tensorwise"),), INT8),
    "dynamic_wi4_afp32": ("dynamic", ((".*", "int8"), ("decoder/.*", "int4")), INT4),
    "static_wi8_ai16": ("static_ai16", ((".*", "int8"),), CALIBRATED),
    "static_wi8_ai8": ("static_ai8", ((".*", "int8"),), CALIBRATED),
    "of_$my_own_with_$a_name_of_32_et": ("dynamic", (("encoder/.*", "int4"),), INT4),
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
    """Return a manifest with everything that an export can add."""

    def opened(name):
        return contextlib.nullcontext(open_engine(mini_artifact, name, num_threads=1))

    files = {
        name: measurements.MeasurableFile(None, lambda name=name: opened(name))
        for name in mini_artifact.files("tflite")
    }
    info = dataclasses.replace(ModelInfo.from_artifact(mini_artifact), encoder_sequence_length=32)
    losses = {"rouge_l": figures.RougeLoss(32.5, 32.25, loss=0.25, low=-0.125, high=0.625)}
    data = figures.TextFile("0" * 64, 775)
    others = {
        name: entry
        for name, entry in mini_artifact.manifest.files.items()
        if not name.startswith(("REPORT.md", "report/"))
    }
    return dataclasses.replace(
        mini_artifact.manifest,
        files=others,
        measurements=tuple(measurements.measure(files, info, export=3)),
        verification=tuple(
            dataclasses.replace(row, rouge=losses, data=data)
            for row in mini_artifact.manifest.verification
        ),
        sensitivity=tuple(
            figures.LayerSensitivity(layer, 1, "int4", kl, 0.1) for layer, kl in LAYERS.items()
        ),
        licence="a licence",
    )


@pytest.fixture
def write(manifest, tmp_path):
    """Return a function that writes a report with changed fields and returns its text."""

    def write_changed(**fields):
        names = report.write(tmp_path, dataclasses.replace(manifest, **fields))
        text = (tmp_path / report.REPORT).read_text().replace("\N{NO-BREAK SPACE}", " ")
        return names, text, " ".join(text.split())

    return write_changed


def rows_of(text, head):
    """Return the rows of the table with a heading, by first cell, as heading → cell."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heads, _, *rows = [line.strip("| ").split(" | ") for line in block.splitlines()]
        if head in heads:
            return {row[0].strip("`"): dict(zip(heads, row, strict=True)) for row in rows}
    raise AssertionError(head)


def test_every_file_is_listed_with_its_size_and_figures(manifest, write):
    _, text, words = write()
    costs, contents, speeds = (rows_of(text, head) for head in ("same texts", "bytes", "4 beams"))
    verified = {row.file: row for row in manifest.verification}
    files = manifest.tflite()
    assert sorted(costs) == sorted(entry.recipe for entry in files.values())
    for name, entry in files.items():
        found, row = verified[name], costs[entry.recipe]
        token, answer = share(found.top1, found.steps), share(found.tokens, found.questions)
        assert row == {
            "file": f"`{entry.recipe}`",
            "MB": f"{entry.bytes / 1e6:.1f}",
            "same next token": f"{token.value:.1%} ({token.low:.1%} to {token.high:.1%})",
            "same texts": f"{answer.value:.0%} ({answer.low:.0%} to {answer.high:.0%})",
            "ROUGE-L loss": "+0.25 (\N{MINUS SIGN}0.12 to +0.62)",
        }
        assert contents[name]["bytes"] == f"{entry.bytes:,}"
    total = sum(int(row["bytes"].replace(",", "")) for row in contents.values())
    assert total == sum(entry.bytes for entry in manifest.files.values())
    assert "from 32 source ids to the last of 31 new tokens" in words
    assert "The files were run in turn." in words
    for row in manifest.measurements:
        for length in row.lengths:
            rates = [31 / seconds for seconds in (length.seconds, length.slowest, length.fastest)]
            how = "greedy" if length.num_beams == 1 else "4 beams"
            expected = "{:.0f} ({:.0f} to {:.0f})".format(*rates)
            assert speeds[manifest.files[row.file].recipe][how] == expected


@pytest.mark.parametrize(
    ("value", "count", "low", "high"),
    # Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17
    # (1998), table I, method 3.
    [(81 / 263, 263, 0.2553, 0.3662), (15 / 148, 148, 0.0624, 0.1605), (0.0, 20, 0.0, 0.1611)],
)
def test_a_share_has_the_interval_of_wilson(value, count, low, high):
    figure = share(value, count)
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=5e-5)


def test_files_differ_only_if_intervals_do_not_overlap(many):
    best, near, far = Figure(1.0, 0.92, 1.0), Figure(0.97, 0.88, 0.99), Figure(0.5, 0.4, 0.6)
    assert facts.differ([best, near, far])
    assert not any(map(facts.differ, ([best, near], [far, None], [])))
    for steps, heads in (
        (10_000, ["Size, MB", "Same next token, %", "Tokens per second"]),
        (42, ["Size, MB", "Tokens per second"]),
    ):
        files = [
            dataclasses.replace(
                file, verification=dataclasses.replace(file.verification, steps=steps)
            )
            for file in many
        ]
        assert [column.head for column in pictures.cost_columns(files, 4)] == heads


def test_the_line_of_a_file_has_its_storage_and_arithmetic(manifest, write):
    name = "tflite/dynamic_wi8_afp32.tflite"
    changed = dataclasses.replace(
        manifest.files[name],
        mode="static_ai8",
        layers=((".*", "int8"),),
        shapes=StaticShapes((16, 64), 32, (1, 4)),
        calibration=Calibration(32),
    )
    signatures = {"encode_16": BucketEntry("encode", {"source": 16}, {}, {})}
    _, _, text = write(files={name: StaticEntry(**vars(changed), signatures=signatures)})
    for words in (
        f"- `{name}`. Purpose: ",
        "sources of 16 or 64 tokens, outputs of 32 tokens, 1 or 4 beams.",
        "Matrices in int8, one scale per row;",
        "computes in int8, calibrated on 32 texts;",
        "runs on ai-edge-litert 2.3.0.",
        f"`{name}` has fixed sizes: `encode_16`.",
    ):
        assert words in text


def test_missing_figures_are_reported_as_missing(manifest, write):
    rows = tuple(dataclasses.replace(row, rouge=None, data=None) for row in manifest.verification)
    names, text, words = write(measurements=(), sensitivity=(), licence=None, verification=rows)
    assert names == [report.REPORT, report.COSTS]
    for missing in (
        "the checkpoint does not state it",
        "Times were not measured",
        "bart-export tune bart_mini_en",
        "human-written texts",
        "three short texts",
    ):
        assert missing in words
    assert {row["ROUGE-L loss"] for row in rows_of(text, "ROUGE-L loss").values()} == {"–"}


def test_times_of_two_exports_are_marked_and_cells_are_escaped(manifest, write):
    rows = enumerate(manifest.measurements, start=1)
    measured = tuple(dataclasses.replace(row, export=number) for number, row in rows)
    _, text, _ = write(measurements=measured, licence="one | two\nthree")
    assert "The files were measured in 2 exports; only compare" in text
    assert "The files were run in turn" not in text
    assert "| licence | one \\| two three |\n" in text


def test_a_report_without_tflite_files_has_no_pictures(write):
    files = {
        "saved_model/1/saved_model.pb": SavedModelEntry(5, "0" * 64, "saved_model", 1),
        "saved_model/1/variables/variables.index": SavedModelEntry(7, "0" * 64, "saved_model"),
    }
    row = figures.SavedModelVerification("saved_model/1", 0.5, 4.5e-06, 1.0, 1.0, 20, 9)
    names, text, words = write(files=files, verification=(row,), sensitivity=())
    assert names == [report.REPORT]
    contents = rows_of(text, "bytes")
    assert [(name, row["bytes"]) for name, row in contents.items()] == [("saved_model/1", "12")]
    found = "log_probabilities 0.5, hidden 4.5e-06, tokens 1, texts 1, steps 20, questions 9."
    assert f"`saved_model/1` compared with the float model: {found}" in words


def test_a_report_is_reproducible(manifest, write, tmp_path):
    names, text, _ = write()
    assert names == [report.REPORT, report.COSTS, report.SENSITIVITY]
    contents = [(tmp_path / name).read_bytes() for name in names]
    assert all(f"({name})" in text for name in names[1:])
    write()
    assert [(tmp_path / name).read_bytes() for name in names] == contents


@pytest.fixture(scope="module")
def many():
    """Return files of every recipe with similar sizes and speeds."""
    machine, files = figures.Machine("a processor", "x86_64"), []
    for place, (name, (mode, layers, _)) in enumerate(RECIPES.items()):
        entry = TfliteEntry(
            9_000_000 - 1000 * place, "0" * 64, "tflite", recipe=name, mode=mode, layers=layers,
            tolerance={}, runtimes={}, refusals={},
        )  # fmt: skip
        verified = figures.FileVerification(
            name, logits=0.1, spread=1.0, relative=0.1, kl=0.1, top1=0.99 - place / 100,
            tokens=None, steps=10_000, questions=0, signatures={},
        )  # fmt: skip
        seconds = {"seconds": 0.04 + place, "fastest": 0.03 + place, "slowest": 0.05 + place}
        measured = Measurement(name, 1, machine, 1, 9, (MeasuredLength(64, 4, 32, **seconds),))
        files.append(facts.ReportedFile(f"tflite/{name}.tflite", entry, verified, measured))
    return files


def test_the_color_of_a_file_shows_its_narrowest_type(many):
    assert [file.kind for file in many] == [kind for _, _, kind in RECIPES.values()]
    assert set(pictures.KINDS) == {FLOAT, INT8, INT4, CALIBRATED}
    assert many[0].label == "float32"
    shapes = StaticShapes((16,), 16, (1,))
    entry = dataclasses.replace(many[0].entry, recipe="x" * 80, shapes=shapes)
    assert dataclasses.replace(many[0], entry=entry).label == f"{'x' * 31}… (static)"


@pytest.fixture(scope="module", params=["costs", "sensitivity"])
def picture(request, many):
    """Return the SVG of a picture, and its text boxes."""
    with pictures.drawing():
        if request.param == "sensitivity":
            figure = pictures.draw_sensitivities(LAYERS, "int4")
        else:
            figure = pictures.draw_costs(many, pictures.cost_columns(many, 4))
        boxes = text_boxes(figure)
        return request.param, pictures.to_svg(figure), boxes


def text_boxes(figure):
    """Return the texts of a figure with their boxes in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [
        (text.get_text(), Text.get_window_extent(text, canvas.get_renderer()))
        for text in figure.findobj(Text)
        if text.get_text() and text.get_visible()
    ]


def test_every_mark_in_a_picture_is_named(picture):
    name, svg, _ = picture
    shown = ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    if name == "sensitivity":
        assert {"token", "encoder position", "self attention query", "11"} <= set(shown)
        assert {"20", "7", "3", "2", "0.1"} <= set(shown)  # the largest, in thousandths
    else:
        assert [shown.count(recipe) for recipe in RECIPES] == [1] * len(RECIPES)


def test_texts_in_a_picture_neither_overlap_nor_leave_it(picture):
    _, svg, boxes = picture
    width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split()[2:])
    scale = 100 / 72  # matplotlib's pixels per point
    # A box has space above and below its letters.
    inner = [(words, box.shrunk(1, 0.7)) for words, box in boxes]
    for number, (words, box) in enumerate(inner):
        assert box.x0 >= 0 and box.x1 <= width * scale, words
        assert box.y0 >= 0 and box.y1 <= height * scale, words
        for others, other in inner[:number]:
            assert not box.overlaps(other), (words, others)


def contrast(one, other):
    """Return the contrast ratio of two colors "#rrggbb" (WCAG 2.2, contrast ratio)."""

    def luminance(color):
        channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [
            value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
            for value in channels
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_a_picture_is_readable_on_light_and_dark_pages(picture):
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # a known ratio
    svg = picture[1]
    (style,) = re.findall(r"@media \(prefers-color-scheme: dark\)\{(.*?)\}</style>", svg)
    rules = re.findall(r'\[style\*="(fill|stroke): (#\w{6})"\]\{(\w+):(#\w{6}) !important\}', style)
    assert all(what == changed for what, _, changed, _ in rules)
    dark = {(what, light): color for what, light, _, color in rules}
    used = set(re.findall(r"(fill|stroke): (#\w{6})", re.sub(r"<style.*?</style>", "", svg)))
    assert used <= set(dark)
    root = ElementTree.fromstring(svg)
    page = pictures.BACKGROUND.light
    assert root.find(f"{SVG}g/{SVG}g/{SVG}path").get("style") == f"fill: {page}"
    colors = {
        re.search(r"fill: (#\w{6})", text.get("style"))[1] for text in root.iter(f"{SVG}text")
    }
    assert len(colors) >= 2
    for color in colors:
        assert contrast(color, page) >= 4.5
        assert contrast(dark["fill", color], dark["fill", page]) >= 4.5
