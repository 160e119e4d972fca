"""Six claims about why GPUs suit deep learning, and the account of a CPU against GPUs, measured.

`python -m experiments.run all --workdir=DIR` runs them. Each module has QUESTION, CLAIM (what is said),
`parts` (what is measured or computed, each part a function whose result is plain JSON) and `present`
(the answer, figures and tables from these results). docs/claims.md says what came out.
"""

# In the order of the page, with the seconds after which quick mode begins no further part; flexibility
# is measured last and takes what is left.
CLAIMS = {
    'parallelism': 35,
    'throughput': 50,
    'libraries': 30,
    'scalability': 45,
    'energy': 5,
    'flexibility': 0,
    'cpu_gpu': 45,
}
