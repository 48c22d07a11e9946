"""What an earlier export's files answered joins the questions of a later one."""

from bart_export.artifact.figures import Answer, Golden, GoldenCase
from bart_export.config import GenerationConfig
from bart_export.verify.golden import Question, recorded

ANSWER = Answer((2, 0), "", 0.5)


def question(setting, num_beams):
    return Question("", (0, 2), setting, GenerationConfig(num_beams=num_beams))


def case(setting, num_beams, *files):
    reference = Answer((2,), "then", 1.0)
    generation = GenerationConfig(num_beams=num_beams)
    return GoldenCase("", (0, 2), setting, generation, reference, dict.fromkeys(files, reference))


def record(asked, *earlier):
    answers = [ANSWER] * len(asked)
    return recorded(asked, answers, {"new": answers}, Golden(earlier), ["old"]).cases


def test_settings_that_are_the_same_question_keep_the_answers_of_both_names():
    asked = [question("beams", 4), question("defaults", 4)]
    cases = record(asked, case("beams", 4, "old", "gone"), case("defaults", 4, "old"))
    assert [set(one.files) for one in cases] == [{"new", "old"}] * 2
    assert all(one.files["new"].score == 0.5 for one in cases)
    assert all(one.files["old"].text == "then" for one in cases)


def test_a_question_that_was_asked_only_then_is_a_case_again():
    cases = record([question("greedy", 1)], case("beams", 4, "old", "gone"), case("more", 5))
    assert cases[1:] == (case("beams", 4, "old"),)
