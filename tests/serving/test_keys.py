"""API keys: who may ask, how much, and that a slip in the file neither locks out nor lets in."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.errors import AdminOff, AdminOnly, KeyMissing, KeysInvalid, KeyUnknown, RateLimited
from serving.keys import Caller, Key, Keys, hash_of, read_keys
from tests.serving.conftest import eventually

ADMIN = "an administrator's key"
USER = "a user's key"


def entry(name: str, key: str, role: str = "user", more: str = "") -> str:
    return f'[[keys]]\nname = "{name}"\nsha256 = "{hash_of(key)}"\nrole = "{role}"\n{more}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(entry("shop", USER) + entry("ops", ADMIN, "admin"), encoding="utf-8")
    return path


def test_without_keys_predictions_are_open_and_admin_routes_are_off() -> None:
    keys = Keys()
    assert keys.caller(None) is None
    assert keys.caller("Bearer whatever") is None
    with pytest.raises(AdminOff):
        keys.admin(f"Bearer {ADMIN}")


def test_a_key_of_the_file_is_known_by_its_name(file: Path) -> None:
    keys = Keys(file)
    caller = keys.caller(f"Bearer {USER}")
    assert caller is not None
    assert (caller.name, caller.role) == ("shop", "user")
    assert keys.admin(f"bearer {ADMIN}").name == "ops"


@pytest.mark.parametrize("sent", [None, "", "Basic abc", "Bearer"])
def test_no_key_is_missing_where_there_are_users(file: Path, sent: str | None) -> None:
    with pytest.raises((KeyMissing, KeyUnknown)):
        Keys(file).caller(sent)


@pytest.mark.parametrize("sent", ["Bearer wrong", f"Bearer {USER}x", f"Bearer {hash_of(USER)}", "Bearer \udcff"])
def test_another_key_is_unknown(file: Path, sent: str) -> None:
    with pytest.raises(KeyUnknown):
        Keys(file).caller(sent)


def test_a_user_may_not_administer(file: Path) -> None:
    with pytest.raises(AdminOnly, match="'shop'"):
        Keys(file).admin(f"Bearer {USER}")


def test_an_administrators_key_alone_leaves_predictions_open() -> None:
    keys = Keys(None, {"admin": hash_of(ADMIN)})
    assert keys.caller(None) is None
    assert keys.caller("Bearer a token for another server") is None
    assert keys.admin(f"Bearer {ADMIN}").role == "admin"
    with pytest.raises(KeyUnknown):
        keys.admin("Bearer a token for another server")
    with pytest.raises(KeyMissing):
        keys.admin(None)


def test_a_key_of_the_environment_closes_predictions() -> None:
    keys = Keys(None, {"user": hash_of(USER).upper(), "admin": ""})
    with pytest.raises(KeyMissing):
        keys.caller(None)
    assert keys.caller(f"Bearer {USER}") is not None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "keys"),
        ("[[keys]\n", "not TOML"),
        (entry("a b", USER), r"keys\.0\.name"),
        ('[[keys]]\nname = "a"\nsha256 = "secret"\n', r"keys\.0\.sha256: must be the 64 hex digits"),
        (entry("a", USER, "root"), r"keys\.0\.role"),
        (entry("a", USER, more="color = 1"), r"keys\.0\.color"),
        (entry("a", USER) + entry("a", ADMIN), "two keys have the same name 'a'"),
        (entry("a", USER) + entry("b", USER), "two keys have the same sha256"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place_and_without_what_stands_there(
    tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(KeysInvalid, match=said) as raised:
        Keys(path)
    assert str(path) in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysInvalid, match="cannot be read"):
        read_keys(tmp_path / "none.toml")


def test_a_changed_file_acts_without_a_restart_and_a_broken_one_does_not(file: Path) -> None:
    keys = Keys(file, look_seconds=0)
    kept = keys.caller(f"Bearer {USER}")
    new = file.with_name("new")
    new.write_text(entry("shop", USER) + entry("desk", "another"), encoding="utf-8")
    new.replace(file)
    assert keys.caller("Bearer another") is not None
    assert keys.caller(f"Bearer {USER}") is kept, "whoever did not change keeps what is left of the rate"
    with pytest.raises(KeyUnknown):
        keys.caller(f"Bearer {ADMIN}")
    file.write_text("[[keys]]\n", encoding="utf-8")
    assert keys.caller("Bearer another") is not None
    file.unlink()
    with pytest.raises(KeyMissing):
        keys.caller(None)
    file.write_text(entry("desk", "a third"), encoding="utf-8")
    eventually(lambda: keys.caller("Bearer a third"), 5)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_holds_on_average_and_tells_when_to_come_back() -> None:
    clock = Clock()
    caller = Caller(Key(name="a", sha256="0" * 64, texts_per_second=10, burst=20), clock)
    caller.take(20)
    with pytest.raises(RateLimited) as raised:
        caller.take(1)
    assert raised.value.retry_after == pytest.approx(0.1)
    clock.now += raised.value.retry_after
    caller.take(64)  # more than the bucket holds: a debt of 63, answered once
    with pytest.raises(RateLimited) as raised:
        caller.take(1)
    assert raised.value.retry_after == pytest.approx(6.4)
    clock.now += 1000
    caller.take(20)
    with pytest.raises(RateLimited):
        caller.take(1)


def test_a_key_without_a_rate_has_none() -> None:
    caller = Caller(Key(name="a", sha256="0" * 64), Clock())
    for _ in range(100):
        caller.take(1000)
