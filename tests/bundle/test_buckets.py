"""Length buckets: names of models, and how they are written down and read again."""

from __future__ import annotations

from bundle.buckets import bucket_names, buckets_in, owner_in, read, written


def test_the_widest_bucket_has_the_name_of_the_model() -> None:
    named = bucket_names("news@2", (128, 32, 64))
    assert list(named.items()) == [(32, "news@2_32"), (64, "news@2_64"), (128, "news@2")]


def test_lengths_are_read_as_they_were_written() -> None:
    assert written((128, 32)) == "32,128" and read("32,128") == read("128,32") == (32, 128)


def test_a_configuration_tells_its_buckets_or_whose_bucket_it_is() -> None:
    widest = 'parameters { key: "buckets" value { string_value: "32,128" } }\n'
    narrow = 'parameters { key: "bucket_of" value { string_value: "news@2" } }\n'
    assert buckets_in(widest) == (32, 128) and owner_in(widest) == ""
    assert buckets_in(narrow) == () and owner_in(narrow) == "news@2"
