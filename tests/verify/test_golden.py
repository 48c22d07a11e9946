"""What an earlier export's files answered joins the questions of a later one."""

from bart_export.verify import golden


def case(setting, num_beams, **files):
    return {
        "source_token_ids": [0, 2],
        "setting": setting,
        "generation": {"num_beams": num_beams},
        "files": files,
    }


def test_settings_that_are_the_same_question_keep_the_answers_of_both_names():
    content = {"cases": [case("beams", 4, new=1), case("defaults", 4, new=1)]}
    earlier = {"cases": [case("beams", 4, old=2, gone=3), case("defaults", 4, old=2)]}
    golden.add_earlier(content, earlier, ["old"])
    assert [one["files"] for one in content["cases"]] == [{"new": 1, "old": 2}] * 2


def test_a_question_that_was_asked_only_then_is_a_case_again():
    content = {"cases": [case("greedy", 1, new=1)]}
    golden.add_earlier(content, {"cases": [case("beams", 4, old=2), case("more", 5)]}, ["old"])
    assert content["cases"][1:] == [case("beams", 4, old=2)]
