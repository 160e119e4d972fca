"""How often a classifier names the class that a generative model was asked for.

    python -m experiments.generative.class_agreement runs/digits_flow runs/digits_cnn --n=2000

Draws n images with the run's own sampling, classes in turn, and prints the share that the classifier
of the other run names as the class asked for, in all and in each class.
"""

import argparse
import json

import jax
import numpy as np

from jaxdl.core.evaluation import readable_variables
from jaxdl.run.open_run import open_run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('generator')
    parser.add_argument('classifier')
    parser.add_argument('--n', type=int, default=2000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--guidance', type=float, default=None)
    given = parser.parse_args()
    run = open_run(given.generator, data=False)
    options = {} if given.guidance is None else {'guidance': given.guidance}
    drawn = run.config.task.draw(
        run.config.model,
        readable_variables(run.state),
        run.config.data,
        given.n,
        seed=given.seed,
        **options,
    )
    judge = open_run(given.classifier, data=False)
    model, task = judge.config.model, judge.config.task
    variables = readable_variables(judge.state) or {}
    logits = jax.jit(
        lambda images: model.apply(variables, **task.inputs({'image': images}), train=False)
    )(drawn.images)
    asked = np.arange(given.n) % logits.shape[-1]
    right = np.asarray(logits.argmax(-1)) == asked
    each = [
        round(100 * float(right[asked == label].mean()), 1) for label in range(logits.shape[-1])
    ]
    print(json.dumps({'agreement': 100 * float(right.mean()), 'each': each, 'how': drawn.note}))


if __name__ == '__main__':
    main()
