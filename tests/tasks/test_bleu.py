import pytest
import sacrebleu

from jaxdl.tasks.bleu import corpus_scores

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
