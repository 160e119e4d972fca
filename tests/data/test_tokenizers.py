import json
import signal
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.data.text import tokenizers as tok
from jaxdl.data.text.tokenizers import Bpe, Bytes, WordPiece, keep
from jaxdl.errors import UserError

TEXTS = [
    'the cat sat on the mat, the cat did not sit.\n\n\tThe mats were flat.',
    'def cat(mats):\n    return [mat.flat for mat in mats]  # “naïve” 猫 🐈\n',
] * 5

# Any text that UTF-8 can hold: all of Unicode but halves of surrogate pairs.
TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=200)


def fitted(tmp_path, **settings):
    bpe = Bpe(**{'vocab_size': 400, **settings})
    bpe.fit(lambda: iter(TEXTS), key='texts', cache=tmp_path)
    return bpe


@pytest.fixture(scope='module')
def bpe(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp('cache'))


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_any_text_survives_both_tokenizers(bpe, text):
    for tokenizer in (Bytes(), bpe):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
        assert not set(ids.tolist()) & {tokenizer.sep, tokenizer.pad, tokenizer.cls, tokenizer.mask}


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, max_size=8))
def test_many_texts_are_encoded_as_one_by_one(bpe, texts):
    for tokenizer in (Bytes(), bpe):
        ids, lengths = tokenizer.encode_many(texts)
        ends = np.cumsum(lengths)
        for text, end, length in zip(texts, ends, lengths, strict=True):
            np.testing.assert_array_equal(ids[end - length : end], tokenizer.encode(text))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(['cat', 'mat.', ' ', '\n', '  ', "'s", '猫', '7', '\t', '!?', '\x1c']),
        max_size=80,
    )
)
def test_cutting_long_texts_changes_no_token(bpe, words):
    text = ''.join(words)
    whole = bpe.encode(text)
    part, tok.PART = tok.PART, 7
    try:
        assert ''.join(tok._cut(text)) == text
        np.testing.assert_array_equal(bpe.encode(text), whole)
    finally:
        tok.PART = part


@given(st.lists(st.integers(0, 400), max_size=50))
def test_any_ids_decode(bpe, ids):
    for tokenizer in (Bytes(), bpe):
        assert isinstance(tokenizer.decode(ids), str)


def test_names_of_special_tokens_are_ordinary_text(bpe):
    for text in ('<sep>', '<pad>', '[MASK]', '<|endoftext|>'):
        assert bpe.decode(bpe.encode(text)) == text and len(bpe.encode(text)) > 1


def test_bpe_merges_what_is_frequent_and_only_that(bpe):
    assert len(bpe.encode('the cat')) == 2
    assert bpe.vocab_size == 400 and bpe.encode(TEXTS[0]).max() < 400


def test_training_is_deterministic_and_the_cache_gives_the_same(tmp_path):
    first = fitted(tmp_path / 'a')
    assert fitted(tmp_path / 'b').fingerprint() == first.fingerprint()
    cached = Bpe(vocab_size=400)
    cached.fit(lambda: pytest.fail('trained again'), key='texts', cache=tmp_path / 'a')
    assert cached.fingerprint() == first.fingerprint()
    assert cached.encode(TEXTS[1]).tolist() == first.encode(TEXTS[1]).tolist()


@pytest.mark.parametrize('changed', [{'vocab_size': 300}, {'train_bytes': 30}])
def test_settings_change_the_tokenizer(tmp_path, bpe, changed):
    assert fitted(tmp_path, **changed).fingerprint() != bpe.fingerprint()


def test_another_text_is_trained_anew(tmp_path, bpe):
    fitted(tmp_path)
    other = Bpe(vocab_size=400)
    other.fit(lambda: iter(['xyzzy xyzzy xyzzy'] * 9), key='other', cache=tmp_path)
    assert other.fingerprint() != bpe.fingerprint()


def test_a_damaged_cache_is_made_again(tmp_path, bpe):
    fitted(tmp_path)
    (path,) = tmp_path.glob('*/tokenizer.json')
    for damage in ('', '{}', path.read_text().replace('[["', '[["Z', 1), path.read_text()[:-40]):
        path.write_text(damage)
        assert fitted(tmp_path).fingerprint() == bpe.fingerprint()


def test_save_and_load(tmp_path, bpe):
    for tokenizer, empty in ((bpe, Bpe(vocab_size=400)), (Bytes(), Bytes())):
        tokenizer.save(tmp_path)
        empty.load(tmp_path)
        assert empty.fingerprint() == tokenizer.fingerprint()
        assert empty.encode(TEXTS[0]).tolist() == tokenizer.encode(TEXTS[0]).tolist()
        empty.fit(lambda: pytest.fail('a loaded tokenizer is not trained'), key='x', cache=tmp_path)


def test_a_tokenizer_that_does_not_match_the_run(tmp_path, bpe):
    keep(bpe, tmp_path)
    keep(bpe, tmp_path)
    other = Bpe(vocab_size=400)
    other.fit(lambda: iter(['other text'] * 9), key='other', cache=tmp_path / 'cache')
    with pytest.raises(UserError, match='fits only its own'):
        keep(other, tmp_path)
    with pytest.raises(UserError, match='asks for Bytes'):
        Bytes().load(tmp_path)
    with pytest.raises(UserError, match=r'vocab_size=400, the config 300'):
        Bpe(vocab_size=300).load(tmp_path)


def test_a_damaged_or_missing_copy(tmp_path, bpe):
    with pytest.raises(UserError, match='no tokenizer can be read'):
        Bpe(vocab_size=400).load(tmp_path / 'nowhere')
    bpe.save(tmp_path)
    path = tmp_path / tok.FILE
    content = json.loads(path.read_text())
    content['state']['merges'][3:5] = reversed(content['state']['merges'][3:5])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match='damaged'):
        Bpe(vocab_size=400).load(tmp_path)
    path.write_text('nonsense')
    with pytest.raises(UserError, match='not JSON'):
        Bpe(vocab_size=400).load(tmp_path)


def test_byte_alphabet_is_that_of_the_library():
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(tok.byte_alphabet()) == sorted(ByteLevel.alphabet())
    pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str('a \n~é')
    text = ''.join(piece for piece, _ in pieces)
    assert text == ''.join(tok.byte_alphabet()[b] for b in 'a \n~é'.encode())


def test_wordpiece_equals_transformers(tmp_path):
    from transformers import BertTokenizerFast

    words = [
        '[PAD]',
        '[UNK]',
        '[CLS]',
        '[SEP]',
        '[MASK]',
        'the',
        'cat',
        'sat',
        'mat',
        '##s',
        ',',
        'naive',
        'on',
    ]
    path = tmp_path / 'vocab.txt'
    path.write_text('\n'.join(words) + '\n')
    tokenizer = WordPiece(vocab=str(path))
    tokenizer.fit(lambda: iter([]), key='', cache=tmp_path)
    reference = BertTokenizerFast(
        vocab=dict(zip(words, range(13), strict=True)), do_lower_case=True
    )
    for text in ('The cats sat, naïve', 'dogs on the mat 猫'):
        expected = reference(text, add_special_tokens=False)['input_ids']
        assert tokenizer.encode(text).tolist() == expected
    assert (tokenizer.pad, tokenizer.cls, tokenizer.sep, tokenizer.mask) == (0, 2, 3, 4)
    assert tokenizer.decode(tokenizer.encode('the cats')) == 'the cats'
    assert tokenizer.token_bytes() is None and tokenizer.vocab_size == 13
    tokenizer.save(tmp_path)
    again = WordPiece(vocab='gone.txt')
    again.load(tmp_path)
    assert again.fingerprint() == tokenizer.fingerprint()
    path.write_text('the\n')
    with pytest.raises(UserError, match=r'no line \[PAD\]'):
        WordPiece(vocab=str(path)).fit(lambda: iter([]), key='', cache=tmp_path)
    with pytest.raises(UserError, match='cannot be read'):
        WordPiece(vocab='gone.txt').fit(lambda: iter([]), key='', cache=tmp_path)


def test_text_that_is_not_unicode_is_refused(bpe):
    for tokenizer in (Bytes(), bpe):
        with pytest.raises(UserError, match='not UTF-8'):
            tokenizer.encode('abc\udcff')


@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_a_vocabulary_ends_its_lines_as_the_library_does(tmp_path, end):
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    # All characters at which str.splitlines would end a line too.
    words = [*special, 'tea', *'\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029', 'milk', '\ufeff', 'jug']
    path = tmp_path / 'vocab.txt'
    path.write_bytes(b'\xef\xbb\xbf' + ''.join(word + end for word in words).encode())
    tokenizer = WordPiece(vocab=str(path))
    tokenizer.fit(lambda: [], key='', cache=tmp_path)
    assert tokenizer.vocab_size == len(words) and tokenizer.pad == 0
    wanted = [words.index(word) for word in ('tea', 'milk', 'jug')]
    assert tokenizer.encode('tea milk jug').tolist() == wanted
    path.write_bytes('\n'.join(words).encode('utf-16'))
    with pytest.raises(UserError, match=r'tokenizer.vocab=.*UTF-16'):
        WordPiece(vocab=str(path)).fit(lambda: [], key='', cache=tmp_path)


def library_merges(texts, size):
    """What the library learns by itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    engine.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(engine.to_str())['model']['merges']]


def test_words_are_cut_only_where_they_are_longer_than_any_word(tmp_path, monkeypatch):
    assert fitted(tmp_path).state()['merges'] == library_merges(TEXTS, 396)
    monkeypatch.setattr(tok, 'LONGEST_WORD', 8)
    letters = ''.join(np.random.default_rng(0).choice(list('ACGT'), 999))
    bpe = Bpe(vocab_size=300)
    bpe.fit(lambda: [letters], key='dna', cache=tmp_path)
    parts = [letters[i : i + 8] for i in range(0, 999, 8)]
    assert bpe.state()['merges'] == library_merges(parts, 296)
    assert bpe.decode(bpe.encode(letters)) == letters


def test_a_signal_is_heard_while_byte_pairs_are_learned(tmp_path, monkeypatch):
    def stop(number, frame):
        raise InterruptedError('stop')

    monkeypatch.setattr(tok, 'LONGEST_WORD', 1 << 30)  # so that it takes long
    letters = ''.join(np.random.default_rng(0).choice(list('ACGT'), 40_000))
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(InterruptedError, match='stop'):
            Bpe(vocab_size=300).fit(lambda: [letters], key='dna', cache=tmp_path)
        (thread,) = [t for t in threading.enumerate() if t.name == 'learn byte pairs']
        assert thread.is_alive()  # the signal did not wait for its end
        thread.join()
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize('settings', [{'vocab_size': 259}, {'train_bytes': 0}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match='must be'):
        Bpe(**settings).check()
