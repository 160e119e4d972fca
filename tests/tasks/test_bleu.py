import types

import numpy as np
import pytest
import sacrebleu

from jaxdl.data.text.tokenizers import Bytes
from jaxdl.models import decode
from jaxdl.tasks.bleu import corpus_scores
from jaxdl.tasks.translation import Translation

REFERENCES = ['Das Aussehen des Objekts bleibt unverändert.', 'Wählen Sie eine Datei aus.']


def test_equals_sacrebleu_and_says_how():
    hypotheses = ['Das Aussehen des Objekts bleibt dabei gleich.', 'Wählen Sie eine Datei aus.']
    found = corpus_scores(hypotheses, REFERENCES)
    assert found['bleu'] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [REFERENCES]).score)
    assert found['chrf'] == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [REFERENCES]).score)
    assert 'tok:13a' in found['bleu_signature'] and 'version:' in found['chrf_signature']


def test_the_references_themselves_score_100():
    found = corpus_scores(REFERENCES, REFERENCES)
    assert found['bleu'] == pytest.approx(100) and found['chrf'] == pytest.approx(100)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match='1 translations for 2'):
        corpus_scores(['a'], REFERENCES)
    with pytest.raises(ValueError, match='at least one'):
        corpus_scores([], [])


def test_translation_searches_with_the_tasks_width_and_penalty(monkeypatch):
    asked = []

    def search(model, variables, source, segments, **options):
        asked.append(options)
        return np.full((len(source), 4), 256), np.ones(len(source), int)

    monkeypatch.setattr(decode, 'translate', search)
    data = types.SimpleNamespace(tokenizer=Bytes(), target_length=8, source_length=32)
    task = Translation(beams=7, length_penalty=1.5)
    task.translate(None, {}, data, ['one', 'two'])
    task.translate(None, {}, data, ['one', 'two'], beams=2)
    assert [(a['beams'], a['length_penalty']) for a in asked] == [(7, 1.5), (2, 1.5)]
