"""Ids made at random."""

import secrets

from broker.token.identifiers import opaque_id, random_id


def test_an_id_is_never_taken_for_an_option_of_a_command() -> None:
    """One in 64 of those that are spelled as they come begins with `-`."""
    assert not any(random_id(secrets.token_bytes).startswith("-") for _ in range(2000))


def test_an_id_that_looked_like_an_option_is_drawn_anew() -> None:
    drawn = iter((bytes([0xF8]) * 16, bytes([0xFB]) + bytes(15), bytes([0xFC]) + bytes(15)))
    assert random_id(lambda _: next(drawn)) == "_AAAAAAAAAAAAAAAAAAAAA"


def test_an_id_has_128_random_bits_and_is_well_formed() -> None:
    asked: list[int] = []

    def drawn(count: int) -> bytes:
        asked.append(count)
        return secrets.token_bytes(count)

    made = random_id(drawn)
    assert opaque_id("id", made) == made
    assert len(made) == 22
    assert set(asked) == {16}
