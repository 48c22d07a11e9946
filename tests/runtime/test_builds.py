"""An artifact with both builds of a recipe: which file is opened, and by which engine."""

import pytest
from support import static_builds
from support.made_up_artifacts import variant

from bart_export.artifact.artifact import Artifact
from bart_export.contract import StaticShapes
from bart_export.errors import ArtifactError, ConfigurationError, InputError
from bart_export.recipes.table import LITERT
from bart_export.runtime.engine_choice import choose_file, open_engine
from bart_export.runtime.generator import Generator
from bart_export.runtime.sizing import Buckets, Dynamic

SHAPES = StaticShapes(source_lengths=(16, 48), target_length=24, num_beams=(1, 4))
INT8 = "dynamic_wi8_afp32"
TEXT = "The river rose two metres overnight, and by morning the lower bridge was closed."
LONGER = " ".join([TEXT] * 4)


@pytest.fixture(scope="module")
def both(symmetric_artifact, tmp_path_factory):
    """Return an artifact with float32 in both builds, and int8 in the static one only."""
    target = tmp_path_factory.mktemp("both") / "bart_tiny_symmetric"
    return static_builds.add(symmetric_artifact, SHAPES, ("float32", INT8), target)


@pytest.fixture(scope="module")
def static_only(both, tmp_path_factory):
    target = tmp_path_factory.mktemp("static_only") / "bart_tiny_symmetric"
    return variant(both, target, without=["tflite/float32.tflite"])


@pytest.mark.parametrize(
    ("recipe", "shapes", "file"),
    [
        ("float32", None, "tflite/float32.tflite"),
        ("float32", "dynamic", "tflite/float32.tflite"),
        ("float32", "static", "tflite/float32.static.tflite"),
        (INT8, None, "tflite/dynamic_wi8_afp32.static.tflite"),
        (None, "dynamic", "tflite/float32.tflite"),
        (None, "static", "tflite/dynamic_wi8_afp32.static.tflite"),
        (None, None, "tflite/dynamic_wi8_afp32.static.tflite"),
    ],
)
def test_the_dynamic_build_is_preferred_and_the_default_recipe_before_it(
    both, recipe, shapes, file
):
    assert choose_file(both, recipe, LITERT, shapes) == file


@pytest.mark.parametrize(
    ("recipe", "shapes", "words"),
    [
        (INT8, "dynamic", f"has no dynamic file of recipe '{INT8}'. "),
        ("int3", "static", "has no static file of recipe 'int3'. "),
        ("int3", None, "has no file of recipe 'int3'. "),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(both, recipe, shapes, words):
    with pytest.raises(ArtifactError) as caught:
        choose_file(both, recipe, None, shapes)
    has = f"It has: float32, float32 (static), {INT8} (static)."
    assert str(caught.value) == f"{both.directory} {words}{has}"


def test_a_build_that_does_not_exist_is_answered_with_those_that_do(both):
    with pytest.raises(ConfigurationError, match=r'dynamic or static, received "fixed"'):
        choose_file(both, None, None, "fixed")


def test_each_build_is_opened_by_its_engine_and_both_say_the_same(both):
    generators = [
        Generator.from_artifact(both.directory, recipe="float32", shapes=shapes, num_threads=1)
        for shapes in ("dynamic", "static")
    ]
    assert [type(one.engine.sizing) for one in generators] == [Dynamic, Buckets]
    for num_beams in (1, 2, 4):
        results = [
            one.generate(TEXT, num_beams=num_beams, max_length=24, truncate=True).token_ids
            for one in generators
        ]
        # The longest bucket cuts what the dynamic build reads whole.
        ids = generators[1].encode(TEXT, truncate=True)
        assert len(ids) <= 48
        same = generators[0].generate_ids(ids, num_beams=num_beams, max_length=24).token_ids
        assert results[1] == same


def test_a_text_beyond_the_longest_bucket_is_refused_or_cut_to_it(static_only):
    generator = Generator.from_artifact(static_only.directory, num_threads=1)
    assert isinstance(generator.engine.sizing, Buckets)
    with pytest.raises(InputError, match="48"):
        generator.generate(LONGER, max_length=8)
    result = generator.generate(LONGER, truncate=True, max_length=8)
    assert len(result.source_token_ids) == 48


def test_the_second_opening_finds_the_weights_of_all_signatures_in_one_cache(both):
    artifact = Artifact.open(both.directory)
    name = "tflite/float32.static.tflite"
    open_engine(artifact, name, num_threads=1)
    (cache,) = (both.directory / ".cache").glob(
        f"{artifact.manifest.files[name].sha256[:16]}*.xnnpack"
    )
    # Six signatures, the matrices of each once.
    assert cache.stat().st_size < 1.2 * artifact.manifest.files[name].bytes
