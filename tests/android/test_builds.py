"""The Gradle and Maven builds of android/ compile the same folders with the same versions.

Gradle does not run without an Android SDK, so its files are parsed. The tests also check imports
and file lengths of the Kotlin sources.
"""

import hashlib
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import bart_export

ROOT = Path(__file__).parents[2]
ANDROID = ROOT / "android"
CI = ANDROID / "ci"
MODULES = ("core", "litert", "app")
DESKTOP_ONLY = {"litert-desktop", "desktop", "screens", "apk"}

CATALOGUE = (ANDROID / "gradle/libs.versions.toml").read_text(encoding="utf-8")
VERSIONS = dict(re.findall(r'^(\w+) = "([\d.]+)"$', CATALOGUE, flags=re.MULTILINE))
# Gradle's default source folders, by a module's plugin.
CODE = {
    f"src/{part}/{kind}" for part in ("main", "test") for kind in ("java", "kotlin", "resources")
}
TAKEN = {
    "kotlin.jvm": CODE,
    "android.library": CODE | {"src/main/res", "src/main/assets"},
    "android.application": CODE | {"src/main/res", "src/main/assets"},
}
MAXIMUM_LINES = 400


def gradle(module):
    """Return a module's build file."""
    return (ANDROID / module / "build.gradle.kts").read_text(encoding="utf-8")


def pom(module=""):
    """Return a module's pom without its namespace, or the parent's."""
    text = (CI / module / "pom.xml").read_text(encoding="utf-8")
    return ElementTree.fromstring(re.sub(r'xmlns="[^"]+"', "", text, count=1))


def properties(module=""):
    """Return a pom's properties."""
    element = pom(module).find("properties")
    return {} if element is None else {child.tag: child.text for child in element}


def files(pattern):
    """Return the tracked and untracked files of android/ that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", pattern],
        cwd=ANDROID,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return sorted(ANDROID / name for name in listed if name and (ANDROID / name).is_file())


def sources(module, part="main"):
    """Return the Kotlin files of a module."""
    return files(f"{module}/src/{part}/*.kt")


def imported(path):
    """Return a Kotlin file's imports."""
    return re.findall(r"^import ([\w.]+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_both_builds_have_the_same_modules():
    settings = (ANDROID / "settings.gradle.kts").read_text(encoding="utf-8")
    assert re.findall(r'^include\(":([\w-]+)"\)$', settings, flags=re.MULTILINE) == list(MODULES)
    modules = [element.text for element in pom().iterfind("modules/module")]
    assert set(modules) == set(MODULES) | DESKTOP_ONLY
    assert {path.parent.name for path in CI.glob("*/pom.xml")} == set(modules)


@pytest.mark.parametrize("module", MODULES)
def test_both_builds_take_every_folder_of_a_module(module):
    plugins = [name for name in TAKEN if f"alias(libs.plugins.{name})" in gradle(module)]
    assert len(plugins) == 1, f"{module} applies {plugins}"
    assert "sourceSets" not in gradle(module), "Gradle's own folders are what is compared here"
    there = {
        "/".join(path.relative_to(ANDROID / module).parts[:3])
        for path in files(f"{module}/src/*")
        if path.name != "AndroidManifest.xml"
    }
    assert there <= TAKEN[plugins[0]], "Gradle does not look there"

    text = (CI / module / "pom.xml").read_text(encoding="utf-8")
    for name, value in properties(module).items():
        text = text.replace(f"${{{name}}}", value)
    named = {folder for folder in there if f"${{android}}/{module}/{folder}<" in text}
    named |= {folder for folder in there if f'"${{android}}/{module}/{folder}"' in text}
    assert named == there, "Maven does not look there"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_built_for_both_by_its_own_folder(module):
    values = {
        "main": pom(module).findtext("build/sourceDirectory"),
        "test": pom(module).findtext("build/testSourceDirectory"),
    }
    for part, value in values.items():
        for name, setting in properties(module).items():
            value = value and value.replace(f"${{{name}}}", setting)
        expected = f"${{android}}/{module}/src/{part}/kotlin"
        assert value == expected or (value is None and not sources(module, part))


def test_the_library_is_published_under_the_package_s_version():
    text = (ANDROID / "build.gradle.kts").read_text(encoding="utf-8")
    assert f'version = "{bart_export.__version__}"' in text
    for module in ("core", "litert"):
        assert "`maven-publish`" in gradle(module)
        assert 'publications.register<MavenPublication>("release")' in gradle(module)


def test_the_wrapper_is_gradle_s_own():
    # Of Gradle 8.13, https://gradle.org/release-checksums/
    jar = (ANDROID / "gradle/wrapper/gradle-wrapper.jar").read_bytes()
    expected = "81a82aaea5abcc8ff68b3dfcb58b3c3c429378efd98e7433460610fecd7ae45f"
    assert hashlib.sha256(jar).hexdigest() == expected
    properties = (ANDROID / "gradle/wrapper/gradle-wrapper.properties").read_text()
    assert "gradle-8.13-bin.zip" in properties
    assert "distributionSha256Sum=" in properties
    assert (ANDROID / "gradlew").stat().st_mode & 0o111


VERSION_NAMES = {
    "kotlin": "kotlin.version",
    "coroutines": "coroutines.version",
    "serialization": "serialization.version",
    "junit": "junit.version",
    "jvmTarget": "kotlin.compiler.jvmTarget",
}


@pytest.mark.parametrize(("in_catalogue", "in_pom"), VERSION_NAMES.items())
def test_both_builds_use_the_same_versions(in_catalogue, in_pom):
    assert properties()[in_pom] == VERSIONS[in_catalogue]
    again = [module for module in MODULES if in_pom in properties(module)]
    assert again == [], f"{in_pom} is set a second time"


def test_the_two_names_of_java_8_agree():
    assert f"1.{properties()['maven.compiler.release']}" == VERSIONS["jvmTarget"]


@pytest.mark.parametrize("name", ["minSdk", "targetSdk"])
def test_maven_packages_for_the_android_versions_that_gradle_names(name):
    for path in CI.glob("*/pom.xml"):
        for key, value in properties(path.parent.name).items():
            assert not key.endswith(name) or value == VERSIONS[name], f"{path}: {key}"
    # The APK's own test reads the catalogue.
    packaging = "".join(path.read_text(encoding="utf-8") for path in files("ci/apk/src/*.kt"))
    assert "gradle/libs.versions.toml" in packaging
    assert f'version("{name}")' in packaging
    assert not re.search(r'sdk-version[=", ]+\d', packaging)


def test_every_version_of_gradle_is_in_the_catalogue():
    literal = re.compile(r'"[\w.-]+:[\w.-]+:[\d.]+"|(?:Sdk|jvmTarget) = "?\d|version "\d')
    for path in files("*.gradle.kts"):
        assert literal.findall(path.read_text(encoding="utf-8")) == [], path
    assert "version =" not in CATALOGUE
    assert set(re.findall(r'version.ref = "(\w+)"', CATALOGUE)) <= set(VERSIONS)


def test_the_version_of_litert_stands_in_one_place():
    litert = VERSIONS["litert"]
    named = [
        str(path.relative_to(ANDROID))
        for path in files("*")
        if path.suffix in {".kts", ".toml", ".xml", ".properties"}
        and re.search(rf"(?<![\d.]){re.escape(litert)}(?![\d.])", path.read_text(encoding="utf-8"))
    ]
    assert named == ["gradle/libs.versions.toml"]


@pytest.mark.parametrize("module", ("core", "litert"))
def test_a_library_is_compiled_as_strictly_by_both(module):
    assert "explicitApi()" in gradle(module)
    assert "-Xexplicit-api=strict" in [element.text for element in pom(module).iter("arg")]


@pytest.mark.parametrize("module", MODULES)
def test_a_warning_is_an_error_in_both(module):
    assert "allWarningsAsErrors = true" in gradle(module)
    assert "-Werror" in [element.text for element in pom().iter("arg")]
    assert pom(module).find(".//arg[.='-nowarn']") is None


def test_gradle_says_how_the_missing_bundle_is_made():
    assert "src/main/assets/bart/manifest.json" in gradle("app")
    assert re.search(r"bart-export .*--android", re.sub(r'" \+\s+"', "", gradle("app")))
    assert 'noCompress += "tflite"' in gradle("app")


# The prefixes of Android and of this project that a module may import.
MAY_NOT_IMPORT = {
    "core": ("android.", "androidx.", "com.google.", "org.bartexport.litert", "org.bartexport.app"),
    "litert": ("android.", "androidx.", "org.bartexport.app"),
    "app": ("androidx.", "com.google."),
}
# The only file of the library that depends on Android.
READS_ASSETS = "AssetSource.kt"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    wrong = [
        f"{path.relative_to(ANDROID)} imports {name}"
        for path in sources(module)
        for name in imported(path)
        if name.startswith(MAY_NOT_IMPORT[module])
        and not (path.name == READS_ASSETS and name.startswith("android."))
    ]
    assert wrong == []


def test_a_package_is_where_its_module_is():
    for module in MODULES:
        for path in sources(module):
            folder = path.relative_to(ANDROID / module / "src/main/kotlin").parent
            package = re.search(r"^package (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert package.group(1) == ".".join(folder.parts), path


def test_the_python_files_that_kotlin_names_exist():
    text = "".join(path.read_text(encoding="utf-8") for path in files("*.kt"))
    named = set(re.findall(r"(?<![\w/])(?:bart_export|tests|tools)/[\w/]+\.py", text))
    assert len(named) > 10
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_no_file_is_two_rooms():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files("*.kt")}
    assert lines, "no Kotlin was found"
    assert {path for path, count in lines.items() if count > MAXIMUM_LINES} == set()


def strings(folder):
    """Return the strings and plurals in a resource folder, as name -> text."""
    named = {}
    for path in sorted(folder.glob("*.xml")):
        for element in ElementTree.parse(path).getroot():
            if element.tag in {"string", "plurals"} and element.get("translatable") != "false":
                named[element.get("name")] = "".join(element.itertext())
    return named


def test_every_language_has_every_string():
    resources = ANDROID / "app/src/main/res"
    language = re.compile(r"values-([a-z]{2}(-r[A-Z]{2})?|b\+\w+)")
    translated = [path for path in resources.glob("values-*") if language.fullmatch(path.name)]
    own = strings(resources / "values")
    for folder in translated:
        other = strings(folder)
        assert set(other) == set(own), folder.name
        for name, text in own.items():
            assert arguments(other[name]) == arguments(text), f"{folder.name}: {name}"
    # A folder for a configuration only overrides names that the default folder has.
    for folder in set(resources.glob("values-*")) - set(translated):
        assert strings(folder) == {}, folder.name


def arguments(text):
    """Return the format arguments of a text."""
    return set(re.findall(r"%(?:\d+\$)?[a-z]", text))
