"""Split expressions mean what they mean in TFDS."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.data.splits import resolve, split_name
from jaxdl.errors import UserError

SHARDS = {'train': (40, 41, 39), 'test': (17,)}


def of_tfds(expression, shards):
    """The ranges that TFDS itself makes of an expression."""
    from tensorflow_datasets.core import splits

    infos = {
        name: splits.SplitInfo(name=name, shard_lengths=list(lengths), num_bytes=0)
        for name, lengths in shards.items()
    }
    ranges = []
    for part in splits.AbstractSplit.from_spec(expression).to_absolute(infos):
        total = sum(shards[part.splitname])
        ranges.append((part.splitname, part.from_ or 0, total if part.to is None else part.to))
    return ranges


def parts():
    boundary = st.one_of(st.just(''), st.integers(-130, 130).map(str))
    percent = st.one_of(st.integers(-100, 100), st.sampled_from([0.5, 33.3, 66.67, -12.5]))
    percents = st.one_of(st.just(''), percent.map(lambda p: f'{p}%'))
    shard = st.one_of(st.just(''), st.integers(0, 3).map(lambda s: f'{s}shard'))
    pair = st.one_of(*(st.tuples(kind, kind) for kind in (boundary, percents, shard)))
    sliced = st.tuples(st.sampled_from(['train', 'test']), pair).map(
        lambda t: f'{t[0]}[{t[1][0]}:{t[1][1]}]'
    )
    return st.one_of(st.sampled_from(['train', 'test', 'train[1shard]', 'all']), sliced)


@settings(max_examples=300, deadline=None)
@given(st.lists(parts(), min_size=1, max_size=3).map(' + '.join))
def test_equal_to_tfds(expression):
    try:
        expected = of_tfds(expression, SHARDS)
    except Exception:
        with pytest.raises(UserError):
            resolve(expression, SHARDS, dataset='x')
        return
    expected = [(name, start, max(start, stop)) for name, start, stop in expected]
    if all(start == stop for _, start, stop in expected):
        with pytest.raises(UserError, match='selects no examples'):
            resolve(expression, SHARDS, dataset='x')
    else:
        assert resolve(expression, SHARDS, dataset='x') == expected


@pytest.mark.parametrize(
    'expression, message',
    [
        ('trian', "no split 'trian', it has test, train; did you mean 'train'?"),
        ('train[', 'not a split expression'),
        ('', 'not a split expression'),
        ('train[5]', r'write \[5:\]'),
        ('train[a:b]', 'must be like'),
        ('train[:1.5]', 'whole numbers'),
        ('train[:500]', 'reaches past the 120 examples'),
        ('train[:0]', 'selects no examples'),
        ('all[:5]', "no split 'all'"),
    ],
)
def test_mistakes(expression, message):
    with pytest.raises(UserError, match=message):
        resolve(expression, SHARDS, dataset='x')


def test_names():
    assert split_name('test') == ('test', 'test')
    assert split_name('valid = train[90%:]') == ('valid', 'train[90%:]')
