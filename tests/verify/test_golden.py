"""golden.json merges the answers of an earlier export's files."""

from bart_export.artifact.figures import Answer, Golden, GoldenCase
from bart_export.config import GenerationConfig
from bart_export.verify.golden import Question, merged

ANSWER = Answer((2, 0), "", 0.5)


def question(setting, num_beams):
    return Question("", (0, 2), setting, GenerationConfig(num_beams=num_beams))


def case(setting, num_beams, *files):
    reference = Answer((2,), "then", 1.0)
    generation = GenerationConfig(num_beams=num_beams)
    return GoldenCase("", (0, 2), setting, generation, reference, dict.fromkeys(files, reference))


def record(asked, *earlier):
    answers = [ANSWER] * len(asked)
    return merged(asked, answers, {"new": answers}, Golden(earlier), ["old"]).cases


def test_equal_settings_with_two_names_keep_the_answers_of_both():
    asked = [question("beams", 4), question("defaults", 4)]
    cases = record(asked, case("beams", 4, "old", "gone"), case("defaults", 4, "old"))
    assert [set(each.files) for each in cases] == [{"new", "old"}] * 2
    assert all(each.files["new"].score == 0.5 for each in cases)
    assert all(each.files["old"].text == "then" for each in cases)


def test_a_question_of_only_the_earlier_export_stays_a_case():
    cases = record([question("greedy", 1)], case("beams", 4, "old", "gone"), case("more", 5))
    assert cases[1:] == (case("beams", 4, "old"),)
