"""The three errors: what they are, what they say, and that they survive a journey."""

import pickle

import pytest

from chumoku.errors import ChumokuError, InvalidArgumentError, InvalidTypeError, UnavailableError

KINDS = {
    InvalidArgumentError: ValueError,
    InvalidTypeError: TypeError,
    UnavailableError: RuntimeError,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_also_what_a_caller_would_catch(kind):
    error = kind("key", got="width 32", expected="width 64", cure="Give it 64.")
    assert isinstance(error, ChumokuError)
    assert isinstance(error, KINDS[kind])
    others = set(KINDS.values()) - {KINDS[kind]}
    assert not isinstance(error, tuple(others))


@pytest.mark.parametrize("kind", KINDS)
def test_message(kind):
    error = kind("key", got="width 32", expected="width 64", cure="Give it 64.")
    assert str(error) == "key: got width 32, expected width 64. Give it 64."
    assert str(kind("key", "one", "two")) == "key: got one, expected two."
    assert (error.argument, error.got, error.expected, error.cure) == (
        "key",
        "width 32",
        "width 64",
        "Give it 64.",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_and_back(kind):
    error = pickle.loads(pickle.dumps(kind("key", "one", "two", "three")))
    assert type(error) is kind
    assert str(error) == "key: got one, expected two. three"
    assert error.cure == "three"
