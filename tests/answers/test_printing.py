"""What a terminal is given to show."""

from pangu_trl.answers.printing import printable


def test_a_text_is_shown_and_never_obeyed():
    assert printable("总体\u3000来说，还不错。 ok") == "总体\u3000来说，还不错。 ok"
    assert printable("\x1b[2J\x07a\nb\r\x9bc\u202ed\u2028") == r"\x1b[2J\x07a\nb\r\x9bc\u202ed\u2028"
    assert printable("\ud800") == r"\ud800"
