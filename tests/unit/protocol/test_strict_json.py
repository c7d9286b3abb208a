import json

import pytest

from facilitator.protocol.strict_json import DEPTH_MAX, NUMBER_CHARS_MAX, HostileError, json_type, load, shown


def refusal(body: bytes) -> str:
    with pytest.raises(HostileError) as caught:
        load(body)
    return caught.value.message


def test_ordinary_json_is_read_as_the_standard_library_reads_it() -> None:
    text = '{"a":[1,-2,3.5,1e3,true,false,null,"\\u00e9\\ud83d\\ude00\\n\\"\\\\",{"b":{}}],"é😀":"USD₮0"}'
    assert load(text.encode()) == json.loads(text)


def test_nesting_is_allowed_up_to_the_bound_and_not_beyond() -> None:
    assert load(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX)
    assert "32 levels" in refusal(b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1))
    assert "32 levels" in refusal(b'{"a":[' * 17 + b"]}" * 17)


def test_many_brackets_that_are_not_deep_are_allowed() -> None:
    assert load(b"[" + b'{"a":[]},' * 200 + b"0]")


def test_brackets_within_strings_do_not_count_as_nesting() -> None:
    assert load(b'["' + b"[{" * 100 + b'","\\"' + b"[" * 100 + b'","\\\\"]')


def test_numbers_are_allowed_up_to_the_bound_and_not_beyond() -> None:
    assert load(b"9" * NUMBER_CHARS_MAX) == int("9" * NUMBER_CHARS_MAX)
    assert "at most 78" in refusal(b"9" * (NUMBER_CHARS_MAX + 1))
    assert "at most 78" in refusal(b"0." + b"0" * NUMBER_CHARS_MAX)
    assert "double" in refusal(b"1e309")
    assert "double" in refusal(b"-1e309")
    assert load(b"-0") == 0


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_what_javascript_calls_a_number_and_json_does_not_is_refused(text: str) -> None:
    assert refusal(f"[{text}]".encode()) == f"expected JSON, got {text}"


def test_a_duplicate_key_is_named_in_the_message() -> None:
    assert refusal(b'{"a":{"b":1,"c":2,"\\u0062":1}}') == "expected each key once, got 'b' again"


@pytest.mark.parametrize("body", [b'{"a":1,"a":2}', b'{"a" :1,"b":{"x":[{}]},"a":"\xc3\xa9"}', b'[{"":{"":1},"":1}]', b'{":":1,":":1}'])
def test_a_duplicate_key_is_refused_in_any_spelling(body: bytes) -> None:
    assert "each key once" in refusal(body)


def test_the_same_key_in_two_objects_is_no_duplicate() -> None:
    assert load(b'[{"a":1},{"a":1,"b":{"a":1}}]') == [{"a": 1}, {"a": 1, "b": {"a": 1}}]


@pytest.mark.parametrize(
    "text", ['"\\u0000"', '"\\ud800"', '"\\udfff"', '"\\ud83d\\ud83d\\ude00"', '{"\\u0000":1}', '[[{"a":["\\uDC00"]}]]']
)
def test_nul_and_lone_surrogates_are_refused_wherever_they_stand(text: str) -> None:
    assert refusal(text.encode()) == "expected text without NUL and lone surrogates"


def test_a_written_backslash_before_u_is_ordinary_text() -> None:
    assert load(b'"\\\\u0000 \\\\ud800"') == "\\u0000 \\ud800"


def test_bytes_that_are_not_utf_8_are_refused_with_their_place() -> None:
    assert refusal(b'{"a":"\xff"}') == "expected UTF-8, got another byte at 6"


def test_bad_syntax_is_refused_with_its_place() -> None:
    assert refusal(b'{"a":1,}').startswith("expected JSON: ")
    assert "column 8" in refusal(b'{"a":1,}')


def test_a_strangers_text_is_quoted_escaped_and_cut() -> None:
    assert shown("a\n\ud800") == "'a\\n\\ud800'"
    assert shown("é") == "'\\xe9'"
    assert len(shown("x" * 10_000)) < 80


def test_values_are_named_as_json_names_them() -> None:
    values: tuple[object, ...] = (None, True, 1, 1.5, "", [], {})
    assert [json_type(value) for value in values] == [
        "nothing",
        "a boolean",
        "a number",
        "a number",
        "a string",
        "an array",
        "an object",
    ]
