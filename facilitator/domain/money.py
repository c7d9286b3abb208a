"""Amounts as people write them: exact decimal text made from integers, never through a float."""


def decimal_text(atomic: int, decimals: int) -> str:
    """`1234500` at 6 decimals is `1.234500`: every digit is shown, so that columns line up and nothing is rounded."""
    sign, digits = ("-" if atomic < 0 else ""), str(abs(atomic)).rjust(decimals + 1, "0")
    return f"{sign}{digits[:-decimals]}.{digits[-decimals:]}" if decimals else f"{sign}{digits}"
