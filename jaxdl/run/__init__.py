"""One call of `train`: the loop, where its state comes from, signals, the processes of a cluster.

It joins core, record and account. Imports no command, no plan, no sweep.
"""
