"""Translation quality as others report it: BLEU and chrF by sacrebleu, with their signatures."""

from collections.abc import Sequence


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Returns bleu, chrf (both 0 to 100) and the signatures that say how they were computed.

    Args:
        hypotheses: translations, detokenised, one a reference.
        references: the texts they are compared with (Post 2018, arXiv:1804.08771).

    Raises:
        ValueError: the two do not have the same length, or are empty.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(
            f'{len(hypotheses)} translations for {len(references)} references: must be as many, '
            'and at least one'
        )
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    scores: dict[str, float | str] = {}
    for name, metric in (('bleu', BLEU()), ('chrf', CHRF())):
        scores[name] = float(metric.corpus_score(list(hypotheses), [list(references)]).score)
        scores[f'{name}_signature'] = str(metric.get_signature())
    return scores
